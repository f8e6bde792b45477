"""Vocabularies: counted one unit at a time, merged one hash range at a time, so that memory stays bounded.

The first fit is the extension of an empty vocabulary. If vocabularies will be extended later, the counts of values that
are still too rare for an id are stored beside them, so that later days add to these counts:

encoders/NAME.parquet, encoders/rare/NAME/range-00000.parquet, ...             after the first fit
encoders/generation-00002/NAME.parquet, encoders/generation-00002/rare/...     after the first extension
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from pipeline import storage
from pipeline.features.encoder_files import RARE, generation_folder, write_encoder
from pipeline.features.encoders import FIRST_VALUE_ID
from pipeline.features.values import IdArray, Kind, count_values, hash_values, positions
from pipeline.section import Section

UNITS_PER_RANGE = 16
"""Number of units whose distinct values fit into the memory of one merge."""

_ROWS_AT_ONCE = 2**22  # partial counts in memory before they are summed


class VocabularyConfig(Section):
    """Each value of the training split gets an id; values seen less than `min_count` times share the unknown id."""

    min_count: int = Field(default=1, ge=1)
    max_size: int | None = Field(default=None, ge=1)


def range_count(units: int) -> int:
    """Number of hash ranges over which values are spread; one for small data."""
    return max(1, -(-units // UNITS_PER_RANGE))


def write_partial(path: str, counts: pa.Table, ranges: int) -> None:
    """Writes the value counts of a unit, one row group per range."""
    with storage.open_output(path) as stream, pq.ParquetWriter(stream, counts.schema, compression="lz4") as writer:
        for part in _split_by_hash(counts, ranges):
            writer.write_table(part, row_group_size=max(len(part), 1))


def _split_by_hash(counts: pa.Table, ranges: int) -> Iterator[pa.Table]:
    if ranges == 1:
        yield counts
        return
    range_of = hash_values(counts["value"].combine_chunks()) % np.uint64(ranges)
    for number in range(ranges):
        yield counts.filter(pa.array(range_of == number))


def empty_vocabulary(kind: Kind) -> pa.Table:
    value = pa.int64() if kind == "int" else pa.large_string()
    return pa.schema({"value": value, "id": pa.int64(), "count": pa.int64()}).empty_table()


def merge_range(
    paths: list[str], number: int, settings: VocabularyConfig, known: pa.Table
) -> tuple[pa.Table, pa.Table]:
    """Sums the counts of one range over all units.

    Args:
        known: the current vocabulary.

    Returns:
        The counts of values that have an id or may get one, and the counts of values that are too rare.
    """
    merged: list[pa.Table] = []
    limit = _ROWS_AT_ONCE
    for path in paths:
        filesystem, resolved = storage.resolve(path)
        with pq.ParquetFile(resolved, filesystem=filesystem) as file:
            merged.append(file.read_row_group(number, use_threads=False))
        if sum(len(part) for part in merged) > limit:
            merged = [_sum(merged)]
            limit = max(_ROWS_AT_ONCE, 2 * len(merged[0]))
    counts = _sum(merged)
    has_id = positions(_values(counts), _values(known)) >= 0
    frequent = _counts(counts) >= settings.min_count
    new = best_first(counts.filter(pa.array(frequent & ~has_id)), _room(known, settings))
    return pa.concat_tables([counts.filter(pa.array(has_id)), new]), counts.filter(pa.array(~frequent & ~has_id))


def _sum(parts: list[pa.Table]) -> pa.Table:
    values = [chunk for part in parts for chunk in part["value"].chunks]
    weights = [chunk.to_numpy() for part in parts for chunk in part["count"].chunks]
    return count_values(values, weights) if values else parts[0]


def _counts(table: pa.Table) -> NDArray[np.int64]:
    return table["count"].to_numpy()


def _values(table: pa.Table) -> IdArray:
    return table["value"].combine_chunks()


def _room(known: pa.Table, settings: VocabularyConfig) -> int | None:
    """How many more values may get an id; None: any number."""
    return None if settings.max_size is None else settings.max_size - len(known)


def best_first(counts: pa.Table, max_size: int | None) -> pa.Table:
    """The most frequent values; equally frequent values in ascending order, so that ids never depend on chance."""
    ordered = counts.sort_by([("count", "descending"), ("value", "ascending")])
    return ordered if max_size is None else ordered.slice(0, max_size)


def extended(known: pa.Table, counts: pa.Table, settings: VocabularyConfig) -> pa.Table:
    """A vocabulary (value, id, count) with counts added: values without an id get the next ids, most frequent first."""
    at = positions(_values(counts), _values(known))
    sums = _counts(known).copy()
    sums[at[at >= 0]] += _counts(counts)[at >= 0]
    new = best_first(counts.filter(pa.array(at < 0)), _room(known, settings))
    values = pa.concat_arrays([_values(known), _values(new)])
    ids = np.arange(len(values), dtype=np.int64) + FIRST_VALUE_ID
    return pa.table({"value": values, "id": ids, "count": np.concatenate([sums, _counts(new)])})


def write_vocabulary(table: str, name: str, generation: int, state: pa.Table, settings: VocabularyConfig) -> None:
    """Writes a vocabulary. When it is full, no other value will get an id: the counts of rare values are deleted."""
    write_encoder(table, name, state, generation)
    if len(state) == settings.max_size:
        storage.delete_folder(storage.join(generation_folder(table, generation), RARE), name)


def write_rare(table: str, name: str, generation: int, number: int, counts: pa.Table) -> None:
    """Writes the counts of the values of a range that have no id; if there are none, writes no file."""
    if len(counts):
        write_partial(storage.join(_rare_folder(table, name, generation), f"range-{number:05d}.parquet"), counts, 1)


def rare_files(table: str, name: str, generation: int) -> list[str]:
    folder = _rare_folder(table, name, generation)
    return [storage.join(folder, file) for file in storage.list_folder(folder)]


def count_rows(path: str) -> int:
    filesystem, path = storage.resolve(path)
    return int(pq.read_metadata(path, filesystem=filesystem).num_rows)


def read_partials(paths: list[str]) -> pa.Table:
    """All counts in the given files, concatenated."""
    resolved = [storage.resolve(path) for path in paths]
    return pa.concat_tables([pq.read_table(path, filesystem=fs, partitioning=None) for fs, path in resolved])


def _rare_folder(table: str, name: str, generation: int) -> str:
    return storage.join(generation_folder(table, generation), RARE, name)
