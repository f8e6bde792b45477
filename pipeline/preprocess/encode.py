"""Encoders: values of a column in, rows of an embedding table or standardised numbers out."""

from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import storage
from pipeline.config.features import FIRST_VALUE_ID, MISSING_ID, UNKNOWN_ID, Multivalued, Numeric, Sequence
from pipeline.preprocess.sections import Sections
from pipeline.preprocess.values import IdArray, Kind, Lists, as_lists, as_numbers, factorize, hash_values, positions

ENCODERS = "encoders"
INDEX = "encoders.json"
RARE = "rare"
_GENERATION = "generation-"


class Encoder(Protocol):
    """Encodes each value by itself: (values,) in, (values,) out."""

    def encode(self, values: pa.Array) -> NDArray[Any]: ...


@dataclass(frozen=True)
class VocabularyEncoder:
    """Ids of values seen in the training split; null is MISSING_ID, any other value UNKNOWN_ID."""

    values: IdArray  # value i has id FIRST_VALUE_ID + i

    def encode(self, values: IdArray) -> NDArray[np.int32]:
        found = positions(values, self.values)
        ids = np.where(found < 0, UNKNOWN_ID, found + FIRST_VALUE_ID).astype(np.int32)
        return _missing(ids, values)


@dataclass(frozen=True)
class HashEncoder:
    """Ids by a hash that is the same everywhere: FIRST_VALUE_ID + hash % buckets; null is MISSING_ID."""

    buckets: int

    def encode(self, values: IdArray) -> NDArray[np.int32]:
        codes, distinct = factorize(values)
        ids = (hash_values(distinct) % np.uint64(self.buckets)).astype(np.int64) + FIRST_VALUE_ID
        return np.append(ids, MISSING_ID)[codes].astype(np.int32)  # the code -1 of null reads the last element


@dataclass(frozen=True)
class QuantileEncoder:
    """The bucket of a number: FIRST_VALUE_ID + number of edges up to it; null and NaN are MISSING_ID."""

    edges: NDArray[np.float64]

    def encode(self, values: pa.Array) -> NDArray[np.int32]:
        numbers = as_numbers(values)
        buckets = np.searchsorted(self.edges, numbers, side="right") + FIRST_VALUE_ID
        return np.where(np.isnan(numbers), MISSING_ID, buckets).astype(np.int32)


@dataclass(frozen=True)
class StandardizeEncoder:
    """(x - mean) / deviation of x or log1p(x); null and NaN become 0, which is the mean."""

    mean: float
    deviation: float
    log1p: bool

    def encode(self, values: pa.Array) -> NDArray[np.float32]:
        with np.errstate(over="ignore"):
            scaled = (transformed(as_numbers(values), self.log1p) - self.mean) / self.deviation
        largest = float(np.finfo(np.float32).max)
        return np.nan_to_num(np.clip(scaled, -largest, largest), nan=0.0).astype(np.float32)


def transformed(numbers: NDArray[np.float64], log1p: bool) -> NDArray[np.float64]:
    """The numbers that moments are taken of. What log1p is not defined for gives NaN: such rows are quarantined."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.log1p(numbers) if log1p else numbers


def _missing(ids: NDArray[np.int32], values: IdArray) -> NDArray[np.int32]:
    if values.null_count:
        ids[values.is_null().to_numpy(zero_copy_only=False)] = MISSING_ID
    return ids


@dataclass(frozen=True)
class EncoderIndex:
    """The file encoders.json. Writing it commits the encoders: a file that it does not lead to does not count."""

    encoders: dict[str, dict[str, Any]]  # kind, what its ids are made of, rows of its embedding table
    generation: int = 1  # of the vocabularies: 1 as they were fitted, one more with each extension
    counted: list[str] | None = None  # train partitions that the vocabularies have counted; None: not known
    lineage: str = ""  # of the files that they were fitted on: ids of another lineage mean something else


def read_index(table: str) -> EncoderIndex | None:
    data = storage.read_json(storage.join(table, ENCODERS, INDEX))
    if data is None:
        return None
    if not isinstance(data.get("generation"), int):  # of a time when vocabularies could not be extended
        return EncoderIndex(data)
    return EncoderIndex(**data)


def write_index(table: str, index: EncoderIndex) -> None:
    storage.write_json(storage.join(table, ENCODERS, INDEX), asdict(index))


def generation_folder(table: str, generation: int) -> str:
    """Where the vocabularies of a generation lie. Other encoders never change and stay with the first."""
    folder = storage.join(table, ENCODERS)
    return folder if generation == 1 else storage.join(folder, f"{_GENERATION}{generation:05d}")


def encoder_file(table: str, name: str, generation: int = 1) -> str:
    """Where the state of an encoder lies: a vocabulary, quantile edges, or moments."""
    return storage.join(generation_folder(table, generation), f"{name}.parquet")


def write_encoder(table: str, name: str, state: pa.Table, generation: int = 1) -> None:
    filesystem, path = storage.prepare_file(encoder_file(table, name, generation))
    pq.write_table(state, path, filesystem=filesystem, compression="lz4")


def read_encoder(table: str, name: str, generation: int = 1, columns: list[str] | None = None) -> pa.Table:
    filesystem, path = storage.resolve(encoder_file(table, name, generation))
    return pq.read_table(path, columns=columns, filesystem=filesystem, partitioning=None)


def delete_superseded_encoders(table: str, index: EncoderIndex) -> None:
    """Deletes vocabularies of other generations than the committed one."""
    folder = storage.join(table, ENCODERS)
    current = generation_folder(table, index.generation)
    for name in storage.list_folder(folder):
        if name.startswith(_GENERATION) and storage.join(folder, name) != current:
            storage.delete_folder(storage.join(folder, name))
    if index.generation > 1:
        storage.delete_folder(storage.join(folder, RARE))
        for name, encoder in index.encoders.items():
            if encoder["kind"] == "vocabulary":
                storage.delete_file(encoder_file(table, name))


def load_encoders(sections: Sections, table: str, generation: int) -> dict[str, Encoder]:
    """All fitted encoders: those of ids by the name of their embedding table, those of numbers by feature."""
    encoders: dict[str, Encoder] = {}
    for feature in sections.features:
        if isinstance(feature, Numeric):
            encoders[feature.name] = _load_numeric(feature, table)
        elif feature.ids is not None and feature.ids.hash is not None:
            encoders[feature.name] = HashEncoder(feature.ids.hash)
        elif feature.ids is not None:
            values = read_encoder(table, feature.name, generation, ["value"])["value"].combine_chunks()
            encoders[feature.name] = VocabularyEncoder(values)
    return encoders


def _load_numeric(feature: Numeric, table: str) -> Encoder:
    state = read_encoder(table, feature.name)
    if feature.encode.quantiles is not None:
        return QuantileEncoder(state["edge"].to_numpy())
    return StandardizeEncoder(
        state["mean"][0].as_py(), state["deviation"][0].as_py(), feature.encode.standardize == "log1p"
    )


def table_sizes(sections: Sections, encoders: dict[str, Encoder]) -> dict[str, int]:
    """Rows of each embedding table, the missing and the unknown id included."""
    sizes = {}
    for feature in sections.features:
        encoder = encoders.get(feature.name)
        if isinstance(encoder, VocabularyEncoder):
            sizes[feature.name] = FIRST_VALUE_ID + len(encoder.values)
        elif isinstance(encoder, HashEncoder):
            sizes[feature.name] = FIRST_VALUE_ID + encoder.buckets
        elif isinstance(feature, Numeric) and feature.encode.quantiles is not None:
            sizes[feature.name] = FIRST_VALUE_ID + feature.encode.quantiles
    return sizes


def read_lists(feature: Multivalued | Sequence, values: pa.Array, kind: Kind) -> Lists:
    """The lists of ids of a multi-valued feature, or the last `max_length` of a behaviour, nulls left out first."""
    lists = as_lists(values, kind, feature.separator if isinstance(feature, Multivalued) else None)
    return lists.last(feature.max_length) if isinstance(feature, Sequence) else lists
