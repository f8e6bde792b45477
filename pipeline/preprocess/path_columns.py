"""Columns in the paths of log files: folders NAME=VALUE, as Hive and Spark write them."""

import logging
import re
from collections import defaultdict
from dataclasses import replace

import pyarrow as pa

from pipeline.config.logs import LogsConfig
from pipeline.config.partition_values import has_value, unescape
from pipeline.errors import UserError
from pipeline.features.column_use import Use
from pipeline.preprocess.discover import LogFile

logger = logging.getLogger(__name__)

_PLAIN_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}")  # as text it is the same again; fits into 64 bits

Values = dict[str, pa.Scalar]  # column -> its value in all rows of a file


def columns_in_paths(logs: LogsConfig, files: list[LogFile]) -> dict[str, Values]:
    """The columns of each file that it does not have itself, but its path. Numbers if all of their values are numbers.

    A partition column is one of them only if no file has a column of this name.
    """
    own = {name for file in files for name in file.schema.names}
    found = {file.path: dict(folders_in_path(file.path)) for file in files}
    texts: dict[str, set[str]] = defaultdict(set)
    for values in found.values():
        for name, value in values.items():
            texts[name] |= {value} if value is not None else set()
    types = {name: _type_of(values) for name, values in texts.items() if name not in own.intersection(logs.levels)}
    return {
        file.path: {
            name: _scalar(value, types[name])
            for name, value in found[file.path].items()
            if name in types and not file.has(name)
        }
        for file in files
    }


def with_columns(file: LogFile, values: Values) -> LogFile:
    """The file with further columns in its schema."""
    schema = file.schema
    for name, value in values.items():
        schema = schema.append(pa.field(name, value.type))
    return replace(file, schema=schema)


def check_once(use: Use, files: list[LogFile]) -> None:
    """Raises UserError if a path has a column twice."""
    for file in files:
        values = [value for name, value in folders_in_path(file.path) if name == use.column]
        if len(values) > 1:
            raise UserError(
                f"The path {file.path} has {len(values)} folders {use.column}=VALUE, which {use.user} uses: it is not "
                "clear which one is meant. Rename the folders of one of them."
            )


def text_in_path(column: str, in_paths: dict[str, Values]) -> str | None:
    """The path of a file because of which the values of a column in paths are texts; None if there is none."""
    for path, values in in_paths.items():
        value = values[column].as_py() if column in values else None
        if isinstance(value, str) and not _PLAIN_NUMBER.fullmatch(value):
            return path
    return None


def warn_of_unused(logs: LogsConfig, files: list[LogFile], used: set[str], taken: dict[str, set[str]]) -> None:
    """Warns once per column below the partition folders whose values are not used, because others are.

    Args:
        used: columns that the experiment uses.
        taken: the columns that are taken from the path of each file.
    """
    unused: dict[str, str] = {}
    for file in files:
        for name in columns_below(logs, file.path):
            if name in used and name not in taken[file.path]:
                unused.setdefault(name, file.path)
    for name, path in unused.items():
        logger.warning(
            "The column %r is in a file or a side table, and also in names of folders, such as in %s: the values in "
            "the names are not used.",
            name,
            path,
        )


def folders_in_path(path: str) -> list[tuple[str, str | None]]:
    """Name and value of each folder NAME=VALUE in the path of a file, unescaped; None for the mark of a null."""
    pairs = (folder.partition("=") for folder in path.split("/")[:-1])
    return [
        (unescape(name), unescape(value) if has_value(value) else None) for name, sign, value in pairs if name and sign
    ]


def columns_below(logs: LogsConfig, path: str) -> list[str]:
    """Columns in the path of a file below its partition folder."""
    return [name for name, _ in folders_in_path("/".join(path.split("/")[len(logs.levels) :]))]


def repeated(value: pa.Scalar, rows: int) -> pa.ChunkedArray:
    """A column with one value in all rows, which is stored once."""
    codes = pa.repeat(pa.scalar(0, pa.int32()), rows)
    return pa.chunked_array([pa.DictionaryArray.from_arrays(codes, pa.array([value.as_py()], value.type))])


def _type_of(values: set[str]) -> pa.DataType:
    if not values:
        return pa.null()
    return pa.int64() if all(map(_PLAIN_NUMBER.fullmatch, values)) else pa.large_string()


def _scalar(value: str | None, type_: pa.DataType) -> pa.Scalar:
    return pa.scalar(int(value) if value is not None and pa.types.is_int64(type_) else value, type_)
