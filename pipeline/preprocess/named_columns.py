"""The columns of a Parquet file that an experiment can name: its columns, and the fields of its structs.

A field is named with dots, such as `device.os`, also in a list of structs: `items.id` is the list of all `id`. A column
whose own name has dots comes first. Only the leaves of the file that belong to a named column are read.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.features.arrow_types import is_list, plain_type

INT96_UNIT = "us"
"""How times of the type INT96 are read: in nanoseconds, days before 1677 and after 2262 would become other days."""


@dataclass(frozen=True)
class NamedColumn:
    """A column, or a field of a struct."""

    type: pa.DataType  # of its values; a list if it is a field of a list of structs
    path: tuple[str, ...]  # the column, then the names of fields
    leaves: range  # of the file: Parquet stores each leaf of a nested column by itself

    @property
    def name(self) -> str:
        return ".".join(self.path)

    def of(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """Its values, from the column of the file in its normal type."""
        if len(self.path) == 1:
            return column
        return pa.chunked_array([_field(chunk, self.path[1:]) for chunk in column.chunks], plain_type(self.type))


def named_columns(schema: pa.Schema) -> list[NamedColumn]:
    """All columns of a file, then the fields of its structs except those whose name a column has."""
    columns: list[NamedColumn] = []
    first = 0
    for field in schema:
        columns.append(NamedColumn(field.type, (field.name,), range(first, first + _leaf_count(field.type))))
        first = columns[-1].leaves.stop
    taken = {column.name for column in columns}
    fields = [field for column in columns if _may_be_nested(column.type) for field in _fields_below(column)]
    return [*columns, *(field for field in fields if field.name not in taken)]


def named_schema(schema: pa.Schema, metadata: pq.FileMetaData | None = None) -> pa.Schema:
    """Name and type of every column that an experiment can name.

    Args:
        metadata: the footer of the file. If its statistics say that a column has only nulls, its type is null: it has
            no values that could be of a wrong type.
    """
    empty = set() if metadata is None else _empty_leaves(metadata)
    return pa.schema([pa.field(column.name, _known_type(column, empty)) for column in named_columns(schema)])


def _fields_below(column: NamedColumn) -> Iterator[NamedColumn]:
    struct, in_list = column.type, False
    if is_list(struct):
        struct, in_list = plain_type(struct).value_type, True
    if not pa.types.is_struct(struct):
        return
    first = column.leaves.start
    for field in struct:
        type_ = pa.list_(field.type) if in_list else field.type
        below = NamedColumn(type_, (*column.path, field.name), range(first, first + _leaf_count(field.type)))
        first = below.leaves.stop
        yield below
        if not (in_list and is_list(field.type)):  # a list of lists: no use has this type
            yield from _fields_below(below)


def _field(values: pa.Array, path: tuple[str, ...]) -> pa.Array:
    if not path:
        return values
    if pa.types.is_large_list(values.type):
        lengths = pc.list_value_length(values).fill_null(0).to_numpy()
        ends = pa.array(np.append(0, np.cumsum(lengths, dtype=np.int64)))
        return pa.LargeListArray.from_arrays(ends, _field(values.flatten(), path), mask=values.is_null())
    return _field(pc.struct_field(values, path[:1]), path[1:])


def _leaf_count(type_: pa.DataType) -> int:
    if not _may_be_nested(type_):
        return 1
    plain = plain_type(type_)
    if pa.types.is_nested(plain):
        return sum(_leaf_count(plain.field(i).type) for i in range(plain.num_fields))
    return 1


def _may_be_nested(type_: pa.DataType) -> bool:
    """A quick look: logs may have many files of hundreds of columns."""
    return pa.types.is_nested(type_) or isinstance(type_, pa.BaseExtensionType)


def _empty_leaves(metadata: pq.FileMetaData) -> set[int]:
    """Leaves without any value in the whole file, as far as its statistics say so."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    return {leaf for leaf in range(metadata.num_columns) if all(_is_empty(g.column(leaf)) for g in groups)}


def _is_empty(chunk: pq.ColumnChunkMetaData) -> bool:
    statistics = chunk.statistics
    return statistics is not None and statistics.has_null_count and statistics.null_count == chunk.num_values


def _known_type(column: NamedColumn, empty: set[int]) -> pa.DataType:
    """Its type; null, or lists of null, if it has no value."""
    if column.leaves.start not in empty:
        return column.type
    plain = plain_type(column.type)
    item = plain.value_type if is_list(plain) else plain
    if pa.types.is_nested(item):
        return column.type
    return pa.list_(pa.null()) if is_list(plain) else pa.null()
