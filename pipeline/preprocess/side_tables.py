"""Side tables: small, one row per key, kept in memory; their columns are joined to every log row with that key."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.config.logs import JoinConfig
from pipeline.errors import UserError, one_line
from pipeline.features.arrow_types import normal
from pipeline.features.values import IdArray, Kind, as_ids, printable, value_kind
from pipeline.preprocess.discover import UNREADABLE
from pipeline.preprocess.named_columns import INT96_UNIT, named_columns, named_schema
from pipeline.section import nearest


@dataclass(frozen=True)
class SideTable:
    """A side table, limited to the columns that the experiment uses."""

    key: str
    key_kind: Kind
    keys: IdArray  # distinct, no nulls
    columns: dict[str, pa.Array]  # in the order of `keys`


def read_side_schema(join: JoinConfig, where: str) -> pa.Schema:
    """Columns of a side table.

    Args:
        where: the path of the join in the experiment file, for errors.

    Raises:
        UserError: the file is missing or not Parquet, or lacks a usable key column.
    """
    if not storage.exists(join.path):
        raise UserError(f"{where}.path: there is no file {storage.absolute(join.path)}. Correct the path.")
    with _open(join, where) as dataset:
        schema = named_schema(dataset.schema)
    if join.key not in schema.names:
        raise UserError(f"{where}.key: {join.path} has no column {join.key!r}; {nearest(join.key, schema.names)}")
    if schema.names.count(join.key) > 1:
        raise UserError(
            f"{where}.key: {join.path} has {schema.names.count(join.key)} columns {join.key!r}: it is not clear which "
            "one is meant. Rewrite the file with only one of them."
        )
    if value_kind(schema.field(join.key).type) is None:
        raise UserError(
            f"{where}.key: the column {join.key!r} of {join.path} is {schema.field(join.key).type}; "
            "a key must be whole numbers or texts."
        )
    return schema


def load_side_table(join: JoinConfig, where: str, columns: list[str]) -> SideTable:
    """Loads the key and the given columns of a side table.

    Raises:
        UserError: the table cannot be read, a key is not a whole number, or a key is repeated.
    """
    table = _read(join, where, [join.key, *(c for c in columns if c != join.key)])
    read = table[join.key]
    kind = value_kind(read.type)
    assert kind is not None, "read_side_schema has checked the key"
    keys, wrong = as_ids(read, kind)
    if wrong.any():
        example = read[int(wrong.argmax())].as_py()
        raise UserError(
            f"{where}: {np.count_nonzero(wrong)} values of the key {join.key!r} in {join.path} are not whole numbers, "
            f"or are floats too large to tell whole numbers apart (float64 from 2**53 on), for example {example!r}: no "
            "row would match. Correct or remove these rows."
        )
    known = keys.is_valid()
    keys = keys.filter(known)
    counts = pc.value_counts(keys)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        key = repeated[0]["values"]
        example = printable(key) if kind == "int" else f"'{printable(key)}'"
        raise UserError(
            f"{where}: {len(repeated)} values of the key {join.key!r} appear more than once in {join.path}, "
            f"for example {example}. A side table has one row per key: remove the duplicates."
        )
    return SideTable(join.key, kind, keys, {c: table[c].filter(known) for c in columns})


def _read(join: JoinConfig, where: str, columns: list[str]) -> dict[str, pa.Array]:
    """Some columns of a side table, see `NamedColumn`, in their plain types."""
    with _open(join, where) as dataset:
        named = {column.name: column for column in reversed(named_columns(dataset.schema))}
        wanted = [named[name] for name in columns]
        for fragment in dataset.fragments:
            # If a file lacks a column, Arrow would fill it with nulls.
            known = {column.name for column in named_columns(fragment.physical_schema)}
            if not known >= set(columns):
                raise UserError(
                    f"{where}.path: the file {fragment.path} has no column {min(set(columns) - known)!r}, though other "
                    f"files of {join.path} have it. Rewrite that file with the column."
                )
        read = dataset.read(list(dict.fromkeys(column.path[0] for column in wanted)))
    return {column.name: _plain(column.of(normal(read[column.path[0]]))) for column in wanted}


def _plain(column: pa.ChunkedArray) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.combine_chunks()


@contextmanager
def _open(join: JoinConfig, where: str) -> Iterator[pq.ParquetDataset]:
    """The files of a side table.

    Raises:
        UserError: reading them fails.
    """
    filesystem, path = storage.resolve(join.path)
    try:
        yield pq.ParquetDataset(
            path,
            filesystem=filesystem,
            partitioning=None,
            coerce_int96_timestamp_unit=INT96_UNIT,
            page_checksum_verification=True,
        )
    except UNREADABLE as error:
        raise UserError(f"{where}.path: {join.path} cannot be read as Parquet: {one_line(error)}.") from error
