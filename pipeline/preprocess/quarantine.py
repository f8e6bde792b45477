"""The quarantine file of a unit: its rejected rows, with all columns of the log that can be carried."""

from collections.abc import Iterator
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import storage
from pipeline.errors import one_line
from pipeline.features.arrow_types import has_views, normal
from pipeline.preprocess.discover import UNREADABLE
from pipeline.preprocess.named_columns import named_columns
from pipeline.preprocess.path_columns import columns_below
from pipeline.preprocess.preprocess_plan import PreprocessPlan
from pipeline.preprocess.units import Unit, in_batches, open_unit
from pipeline.preprocess.write import quarantine_folder

BYTES_TOGETHER = 2**27
"""Uncompressed bytes of the columns that are read together: many small requests to an object store take long."""


def write_quarantine(plan: PreprocessPlan, unit: Unit, rows: NDArray[np.int64], reasons: pa.Array) -> dict[str, str]:
    """Writes rejected rows unchanged from the log, with columns of the path, their file, row number and reason.

    Args:
        rows: row numbers in the unit, ascending.
        reasons: one reason per row.

    Returns:
        The columns that could not be carried, and why.
    """
    bad, lost = _carried(plan.log, unit, rows)
    in_path = plan.sources.in_paths.get(unit.file, {})
    for column in dict.fromkeys(columns_below(plan.sections.logs, unit.file)):
        if column in in_path:
            bad = bad.append_column(column, pa.repeat(in_path[column], len(rows)))
    added: dict[str, Any] = {
        "file": pa.array([unit.file] * len(rows)),
        "row": pa.array(rows + unit.first_row),
        "reason": reasons,
    }
    for name, column in added.items():
        bad = bad.append_column(name if name not in bad.column_names else f"quarantine_{name}", column)
    bad = bad.rename_columns(_distinct(bad.column_names))
    name = f"{quarantine_folder(plan, unit.partition)}/{unit.name}.parquet"
    with storage.open_output(storage.join(plan.table, name)) as stream:
        pq.write_table(bad, stream)
    return lost


def _carried(log: str, unit: Unit, rows: NDArray[np.int64]) -> tuple[pa.Table, dict[str, str]]:
    """Some rows with all columns of the file, and the columns that cannot be read or written, with the reason.

    The file is read a second time, because only quarantine files need the columns that no feature uses.
    """
    names: list[str] = []
    columns: list[pa.ChunkedArray] = []
    lost: dict[str, str] = {}
    with open_unit(log, unit) as file:
        for together in _read_together(file, unit):
            taken = _take_what_can_be_read(file, unit, rows, together, lost)
            names += [name for name, _ in taken]
            columns += [column for _, column in taken]
    return pa.table(columns, names=_distinct(names)), lost


def _read_together(file: pq.ParquetFile, unit: Unit) -> Iterator[dict[str, list[str]]]:
    """Paths of the leaves of each column, for as many columns as are read together: small ones, or one that is large.

    Several columns may have one name. Each is named once.
    """
    leaves: dict[str, list[int]] = {}
    for column in named_columns(file.schema_arrow):
        if len(column.path) == 1:
            leaves.setdefault(column.name, []).extend(column.leaves)
    together: dict[str, list[str]] = {}
    total = 0
    for name, numbers in leaves.items():
        groups = [file.metadata.row_group(group) for group in unit.groups]
        size = sum(group.column(leaf).total_uncompressed_size for group in groups for leaf in numbers)
        if together and total + size > BYTES_TOGETHER:
            yield together
            together, total = {}, 0
        together[name] = [file.metadata.schema.column(leaf).path for leaf in numbers]
        total += size
    yield together


def _take_what_can_be_read(
    file: pq.ParquetFile, unit: Unit, rows: NDArray[np.int64], leaves: dict[str, list[str]], lost: dict[str, str]
) -> list[tuple[str, pa.ChunkedArray]]:
    """Names and values of columns; those that cannot be read or written are added to `lost`."""
    try:
        return _take(file, unit, rows, leaves)
    except (*UNREADABLE, MemoryError) as error:
        if len(leaves) > 1:  # each alone, so that the others are kept
            alone = [_take_what_can_be_read(file, unit, rows, {name: leaves[name]}, lost) for name in leaves]
            return [column for columns in alone for column in columns]
        lost[next(iter(leaves))] = one_line(error)
        return []


def _take(
    file: pq.ParquetFile, unit: Unit, rows: NDArray[np.int64], leaves: dict[str, list[str]]
) -> list[tuple[str, pa.ChunkedArray]]:
    """Names and values of all columns with these names.

    Raises:
        pa.ArrowException, OSError, MemoryError: they cannot be read or written.
    """
    parts: list[pa.RecordBatch] = []
    start = 0
    for group in unit.groups:
        end = start + file.metadata.row_group(group).num_rows
        inside = rows[(rows >= start) & (rows < end)] - start
        start = end
        if len(inside):
            parts += in_batches(partial(_take_in_batches, file, group, inside, leaves))
    if not parts or sum(len(part) for part in parts) != len(rows):
        raise pa.ArrowInvalid("it has fewer rows than the footer of the file says")
    taken = [pa.chunked_array([part.column(i) for part in parts]) for i in range(parts[0].num_columns)]
    empty = [column.slice(0, 0) for column in taken]
    pq.write_table(pa.table(empty, names=[str(i) for i in range(len(empty))]), pa.BufferOutputStream())
    return list(zip(parts[0].schema.names, taken, strict=True))


def _take_in_batches(
    file: pq.ParquetFile, group: int, rows: NDArray[np.int64], leaves: dict[str, list[str]], size: int
) -> list[pa.RecordBatch]:
    """The part of such rows in each batch of a row group that has any."""
    taken = []
    start = 0
    paths = [path for paths in leaves.values() for path in paths]
    for batch in file.iter_batches(size, row_groups=[group], columns=paths, use_threads=False):
        first, last = np.searchsorted(rows, [start, start + len(batch)])
        if first < last:
            at = pa.array(rows[first:last] - start)
            # A path is also that of a field of a struct, if its name has dots.
            wanted = [i for i, name in enumerate(batch.schema.names) if name in leaves]
            columns = [_without_views(batch.column(i)).take(at) for i in wanted]
            taken.append(pa.RecordBatch.from_arrays(columns, [batch.schema.names[i] for i in wanted]))
        start += len(batch)
    return taken


def _without_views(values: pa.Array) -> pa.Array:
    return normal(pa.chunked_array([values])).chunk(0) if has_views(values.type) else values


def _distinct(names: list[str]) -> list[str]:
    """Makes names unique by adding a number to repeated names: most readers refuse duplicate column names."""
    distinct: list[str] = []
    for name in names:
        tries = (name if n == 1 else f"{name}_{n}" for n in count(1))
        distinct.append(next(candidate for candidate in tries if candidate not in distinct))
    return distinct
