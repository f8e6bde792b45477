"""How features access the log: which columns they use, and the content of these columns in some rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from pipeline.features.arrow_types import is_float, is_list, is_number, plain_type
from pipeline.features.values import Column, Kind, value_kind


@dataclass(frozen=True)
class ColumnTypes:
    """Arrow types that fit one use of a column."""

    expected: str  # the types in words
    fits: Callable[[pa.DataType], bool]
    kind: Callable[[pa.DataType], Kind | None] = lambda type_: None  # of the ids; None without ids, or with nulls only

    @property
    def has_ids(self) -> bool:
        return any(self.kind(type_) is not None for type_ in (pa.int64(), pa.list_(pa.int64())))


@dataclass(frozen=True)
class Use:
    """One use of a column by the experiment."""

    column: str
    user: str  # the part of the experiment that uses it, with its path in the experiment file
    types: ColumnTypes


class Rows(Protocol):
    """Some rows of the log with the side tables joined."""

    def column(self, name: str) -> Column: ...

    def id_kind(self, name: str) -> Kind:
        """Kind of the ids in a column, in the whole log."""
        ...


def _has_ids(type_: pa.DataType) -> bool:
    return value_kind(type_) is not None


def _is_plain_text(type_: pa.DataType) -> bool:
    return value_kind(type_) == "text"


def _is_id_list(type_: pa.DataType) -> bool:
    if not is_list(type_):
        return False
    item = plain_type(type_).value_type
    return pa.types.is_null(item) or (_has_ids(item) and not is_float(item))


def _item_kind(type_: pa.DataType) -> Kind | None:
    return value_kind(plain_type(type_).value_type) if is_list(type_) else None


def _text_kind(type_: pa.DataType) -> Kind:
    return "text"


def _anything(type_: pa.DataType) -> bool:
    return True


IDS = ColumnTypes("whole numbers, texts or booleans", _has_ids, value_kind)
ID_LISTS = ColumnTypes("lists of whole numbers or texts, or text with a `separator`", _is_id_list, _item_kind)
SEPARATED_TEXTS = ColumnTypes("text to be split at the separator", _is_plain_text, _text_kind)
NUMBERS = ColumnTypes("an integer, a float or a boolean", is_number)
ANY_TYPE = ColumnTypes("any type", _anything)


def id_lists(separator: str | None) -> ColumnTypes:
    """Types of a column of lists of ids, or of texts that are split."""
    return ID_LISTS if separator is None else SEPARATED_TEXTS
