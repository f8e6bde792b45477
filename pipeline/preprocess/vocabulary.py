"""Vocabularies: counted a unit at a time, merged a range of hashes at a time, so that memory stays bounded."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import storage
from pipeline.config.features import FIRST_VALUE_ID, Vocabulary
from pipeline.preprocess.encode import write_encoder
from pipeline.preprocess.values import count_values, hash_values

UNITS_PER_RANGE = 16
"""Units whose distinct values fit into the memory of one merge."""

_ROWS_AT_ONCE = 2**22  # partial counts that are held before they are summed


def range_count(units: int) -> int:
    """Hash ranges that values are spread over; one for small data."""
    return max(1, -(-units // UNITS_PER_RANGE))


def write_partial(path: str, counts: pa.Table, ranges: int) -> None:
    """Writes the value counts of a unit, one row group a range."""
    filesystem, path = storage.resolve(path)
    filesystem.create_dir(path.rsplit("/", 1)[0], recursive=True)
    with pq.ParquetWriter(path, counts.schema, filesystem=filesystem, compression="lz4") as writer:
        for part in _split_by_hash(counts, ranges):
            writer.write_table(part, row_group_size=max(len(part), 1))


def _split_by_hash(counts: pa.Table, ranges: int) -> Iterator[pa.Table]:
    if ranges == 1:
        yield counts
        return
    range_of = hash_values(counts["value"].combine_chunks()) % np.uint64(ranges)
    for number in range(ranges):
        yield counts.filter(pa.array(range_of == number))


def merge_range(paths: list[str], number: int, settings: Vocabulary) -> pa.Table:
    """Sums the counts of one range over all units and keeps the values that may get an id, best first."""
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
    counts = counts.filter(pa.array(_counts(counts) >= settings.min_count))
    return best_first(counts, settings.max_size)


def _sum(parts: list[pa.Table]) -> pa.Table:
    values = [chunk for part in parts for chunk in part["value"].chunks]
    weights = [chunk.to_numpy() for part in parts for chunk in part["count"].chunks]
    return count_values(values, weights) if values else parts[0]


def _counts(table: pa.Table) -> NDArray[np.int64]:
    return table["count"].to_numpy()


def best_first(counts: pa.Table, max_size: int | None) -> pa.Table:
    """The most frequent values; of equally frequent ones the smaller first, so that ids never depend on chance."""
    ordered = counts.sort_by([("count", "descending"), ("value", "ascending")])
    return ordered if max_size is None else ordered.slice(0, max_size)


def write_vocabulary(table: str, name: str, counts: pa.Table) -> None:
    """Gives values, best first, their ids, and writes them as `encoders/NAME.parquet` (value, id, count)."""
    ids = pa.array(np.arange(len(counts), dtype=np.int64) + FIRST_VALUE_ID)
    write_encoder(table, name, pa.table({"value": counts["value"], "id": ids, "count": counts["count"]}))
