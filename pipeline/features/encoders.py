"""Encoders: values of a column in, rows of an embedding table or standardised numbers out."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.features.values import IdArray, as_numbers, factorize, hash_values, positions

# Every embedding table begins with these rows; values seen in the training split, or hash buckets, follow.
MISSING_ID = 0
UNKNOWN_ID = 1
FIRST_VALUE_ID = 2


class Encoder(Protocol):
    """Encodes each value independently: (values,) in, (values,) out."""

    @property
    def rows(self) -> int | None:
        """Rows of the embedding table of these ids, including MISSING_ID and UNKNOWN_ID; None for numbers."""
        ...

    def encode(self, values: pa.Array) -> NDArray[Any]: ...


@dataclass(frozen=True)
class VocabularyEncoder:
    """Ids of values seen in the training split; null is MISSING_ID, any other value UNKNOWN_ID."""

    values: IdArray  # value i has id FIRST_VALUE_ID + i

    @property
    def rows(self) -> int:
        return FIRST_VALUE_ID + len(self.values)

    def encode(self, values: IdArray) -> NDArray[np.int32]:
        found = positions(values, self.values)
        ids = np.where(found < 0, UNKNOWN_ID, found + FIRST_VALUE_ID).astype(np.int32)
        return _missing(ids, values)


@dataclass(frozen=True)
class HashEncoder:
    """Ids by a hash that is the same everywhere: FIRST_VALUE_ID + hash % buckets; null is MISSING_ID."""

    buckets: int

    @property
    def rows(self) -> int:
        return FIRST_VALUE_ID + self.buckets

    def encode(self, values: IdArray) -> NDArray[np.int32]:
        codes, distinct = factorize(values)
        ids = (hash_values(distinct) % np.uint64(self.buckets)).astype(np.int64) + FIRST_VALUE_ID
        return np.append(ids, MISSING_ID)[codes].astype(np.int32)  # the code -1 of null reads the last element


@dataclass(frozen=True)
class QuantileEncoder:
    """The bucket of a number: FIRST_VALUE_ID + number of edges up to it; null and NaN are MISSING_ID."""

    edges: NDArray[np.float64]
    buckets: int  # may exceed the number of edges + 1, if the data had fewer distinct values than buckets

    @property
    def rows(self) -> int:
        return FIRST_VALUE_ID + self.buckets

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

    @property
    def rows(self) -> None:
        return None

    def encode(self, values: pa.Array) -> NDArray[np.float32]:
        with np.errstate(over="ignore"):
            scaled = (transformed(as_numbers(values), self.log1p) - self.mean) / self.deviation
        largest = float(np.finfo(np.float32).max)
        return np.nan_to_num(np.clip(scaled, -largest, largest), nan=0.0).astype(np.float32)


def transformed(numbers: NDArray[np.float64], log1p: bool) -> NDArray[np.float64]:
    """The numbers whose moments are computed. Where log1p is undefined they are NaN: such rows are quarantined."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.log1p(numbers) if log1p else numbers


def _missing(ids: NDArray[np.int32], values: IdArray) -> NDArray[np.int32]:
    if values.null_count:
        ids[values.is_null().to_numpy(zero_copy_only=False)] = MISSING_ID
    return ids
