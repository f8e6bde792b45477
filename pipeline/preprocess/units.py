"""Units of work: consecutive row groups of a log file, small enough for the memory of one worker."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import storage
from pipeline.errors import one_line
from pipeline.features.arrow_types import normal
from pipeline.features.values import Column, Kind, as_ids
from pipeline.preprocess.discover import UNREADABLE, PartitionFiles
from pipeline.preprocess.named_columns import INT96_UNIT, NamedColumn, named_columns
from pipeline.preprocess.path_columns import repeated
from pipeline.preprocess.preprocess_plan import PreprocessPlan
from pipeline.preprocess.sources import uses
from pipeline.preprocess.task_errors import LAST_COLUMN

Result = TypeVar("Result")

UNIT_ROWS = 2**20
"""Maximum rows of a unit; row groups are never split. By default pyarrow writes row groups of this size."""

BATCH_ROWS = (2**12, 2**6, 1)
"""Numbers of rows per batch, tried one after the other by `in_batches`."""

_BYTE_ARRAYS = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view())

REWRITTEN = "it was rewritten while the job was running"


@dataclass(frozen=True)
class Unit:
    """Consecutive row groups of a log file; (partition, number) identifies the unit in the feature table."""

    split: str
    partition: str
    number: int
    file: str  # relative to the log folder
    groups: list[int]
    first_row: int  # in the file
    rows: int

    @property
    def name(self) -> str:
        return f"unit-{self.number:05d}"

    @property
    def item(self) -> dict[str, Any]:
        return asdict(self)


def part_of_log(item: dict[str, Any]) -> str | None:
    """The part of the log that a task reads, in words; None if the item is not a unit."""
    if item.keys() != Unit.__dataclass_fields__.keys():
        return None
    unit = Unit(**item)
    groups = (
        f"row group {unit.groups[0]}" if len(unit.groups) == 1 else f"row groups {unit.groups[0]} to {unit.groups[-1]}"
    )
    return f"{groups} of {unit.file}"


class Unreadable(Exception):
    """The data of a unit cannot be read."""


def cut_units(found: PartitionFiles) -> list[Unit]:
    """Splits the files of a partition, in the order of their paths, into numbered units."""
    units: list[Unit] = []
    for file in found.files:
        groups: list[int] = []
        first_row = end = 0
        for group, rows in enumerate([*file.group_rows, None]):
            if end > first_row and (rows is None or end - first_row + rows > UNIT_ROWS):
                p = found.partition
                units.append(Unit(p.split, p.value, len(units), file.path, groups, first_row, end - first_row))
                groups, first_row = [], end
            groups = [*groups, group]
            end += rows or 0
    return units


class UnitRows:
    """The rows of a unit by column, with side tables joined."""

    def __init__(self, plan: PreprocessPlan, unit: Unit, columns: set[str]) -> None:
        """Reads some columns of the unit.

        Raises:
            Unreadable: the file is damaged.
        """
        self._plan = plan
        self.count = unit.rows
        self.file = unit.file
        self.first_row = unit.first_row
        self.split = unit.split
        self._log = _read(plan, unit, columns)
        self.with_label: dict[str, NDArray[np.bool_]] = {}  # task -> which rows have its label, see `rows_with_label`

    def column(self, name: str) -> Column:
        """A column of the log or of a side table; null where the side table lacks the row's key."""
        LAST_COLUMN.set(name)
        side = self._plan.sources.side.get(name)
        if side is None:
            return Column.of(self._log[name])
        joined = self._joins[side]
        return Column(self._plan.sides[side].columns[name].take(joined.values), joined.rows)

    def has_match(self, side: int) -> NDArray[np.bool_]:
        """Which rows have a row in a side table."""
        joined = self._joins[side]
        matched: NDArray[np.bool_] = joined.values.is_valid().to_numpy(zero_copy_only=False)
        return matched[joined.rows]

    def id_kind(self, name: str) -> Kind:
        """Kind of the ids in a column, in the whole log."""
        return self._plan.sources.kinds[name]

    @cached_property
    def _joins(self) -> list[Column]:
        """For each side table: the rows that are used (null: no such key), and the index into them per log row."""
        joins = []
        for side in self._plan.sides:
            keys = Column.of(self._log[side.key])
            matches = pc.index_in(as_ids(keys.values, side.key_kind)[0], value_set=side.keys, skip_nulls=True)
            encoded = matches.take(pa.array(keys.rows)).dictionary_encode(null_encoding="encode")
            joins.append(Column(encoded.dictionary, encoded.indices.to_numpy()))
        return joins


def _read(plan: PreprocessPlan, unit: Unit, columns: set[str]) -> dict[str, pa.ChunkedArray]:
    in_log = {column for column in columns if plan.sources.in_log(column)}
    if len(in_log) < len(columns):
        in_log |= {side.key for side in plan.sides}
    lacking = in_log.intersection(plan.sources.lacking.get(unit.file, ()))
    null = pa.chunked_array([pa.nulls(unit.rows)])
    in_path = {name: value for name, value in plan.sources.in_paths.get(unit.file, {}).items() if name in in_log}
    names = sorted(in_log - lacking - in_path.keys())
    read = read_unit(plan.log, unit, names, set(plan.sources.kinds)) if names else pa.table({})
    constant = {name: repeated(value, unit.rows) for name, value in in_path.items()}
    return dict.fromkeys(lacking, null) | constant | {name: read[name] for name in names}


def read_unit(log: str, unit: Unit, columns: list[str], encoded: set[str]) -> pa.Table:
    """Reads columns of a unit, see `NamedColumn`, in their normal types.

    Args:
        columns: columns that the file has.
        encoded: columns that may be read as dictionaries: each text once instead of once per row.

    Raises:
        Unreadable: the file is damaged.
    """
    with open_unit(log, unit, encoded) as file:
        named = {column.name: column for column in reversed(named_columns(file.schema_arrow))}
        if not named.keys() >= set(columns):
            raise Unreadable(REWRITTEN)
        wanted = [named[name] for name in columns]
        read = _read_leaves(file, unit, wanted)
    if len(read) != unit.rows:
        raise Unreadable(f"its footer says {unit.rows} rows, but its columns have {len(read)}")
    return pa.table({column.name: column.of(read[column.path[0]]) for column in wanted})


@contextmanager
def open_unit(log: str, unit: Unit, encoded: Collection[str] = ()) -> Iterator[pq.ParquetFile]:
    """The file of a unit, open; see `read_unit`."""
    filesystem, root = storage.resolve(log)
    path = f"{root}/{unit.file}"
    try:
        metadata = pq.read_metadata(path, filesystem=filesystem)
        if unit.groups[-1] >= metadata.num_row_groups:
            raise Unreadable(REWRITTEN)
        with pq.ParquetFile(
            path,
            filesystem=filesystem,
            metadata=metadata,
            read_dictionary=[name for name in _repetitive_texts(metadata, unit.groups) if name in encoded],
            coerce_int96_timestamp_unit=INT96_UNIT,
            page_checksum_verification=True,
        ) as file:
            yield file
    except MemoryError:  # also that of Arrow, which is one of its exceptions
        raise
    except UNREADABLE as error:
        raise Unreadable(one_line(error)) from error


def _read_leaves(file: pq.ParquetFile, unit: Unit, columns: list[NamedColumn]) -> pa.Table:
    """The given parts of the columns of the file, in their normal types."""
    leaves = {leaf: file.metadata.schema.column(leaf).path for column in columns for leaf in column.leaves}
    paths = [leaves[leaf] for leaf in sorted(leaves)]
    try:
        return _normal(file.read_row_groups(unit.groups, columns=paths, use_threads=False))
    except pa.ArrowNotImplementedError:  # see `in_batches`
        return in_batches(lambda rows: _read_in_batches(file, unit, paths, rows))


def _read_in_batches(file: pq.ParquetFile, unit: Unit, paths: list[str], rows: int) -> pa.Table:
    batches = file.iter_batches(rows, row_groups=unit.groups, columns=paths, use_threads=False)
    return pa.concat_tables([_normal(pa.Table.from_batches([batch])) for batch in batches])


def in_batches(read: Callable[[int], Result]) -> Result:
    """The result of ``read(rows)``, with so few rows per batch that the texts of each fit into an array.

    Arrow reads texts with offsets of 32 bits. If a column has more than 2 GiB of text, it makes several arrays, except
    inside a list or a struct, where it raises an error.
    """
    for rows in BATCH_ROWS[:-1]:
        try:
            return read(rows)
        except pa.ArrowNotImplementedError:
            continue
    return read(BATCH_ROWS[-1])


def _normal(table: pa.Table) -> pa.Table:
    return pa.table([normal(column) for column in table.columns], names=table.column_names)


def _repetitive_texts(metadata: pq.FileMetaData, groups: list[int]) -> list[str]:
    """Text columns that are stored as dictionaries in all of the given row groups.

    If the writer stopped using a dictionary and stored plain texts, building a dictionary while reading takes twice as
    long as reading plain texts. Codes take less than 4 bytes per value, plus a dictionary of 1 MiB; texts take more.
    """
    texts = {field.name for field in metadata.schema.to_arrow_schema() if field.type in _BYTE_ARRAYS}
    for group in groups:
        chunks = metadata.row_group(group)
        for i in range(metadata.num_columns):
            chunk = chunks.column(i)
            if chunk.total_uncompressed_size > 4 * chunk.num_values + 2**20:
                texts.discard(chunk.path_in_schema)
    return sorted(texts)


def all_columns(plan: PreprocessPlan) -> set[str]:
    return {use.column for use in uses(plan.sections)}
