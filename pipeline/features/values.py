"""Columns of a log as plain values: int64 or text ids, float64 numbers, lists of ids. Arrow and numpy kernels only."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.features.arrow_types import is_bytes, is_number, is_text

Kind = Literal["int", "text"]
"""The kind of ids. Booleans and floats that are whole numbers count as int, bytes as text."""

KIND_IN_WORDS: dict[Kind, str] = {"int": "whole numbers", "text": "texts"}

IdArray: TypeAlias = pa.Array
"""An int64 or large_string array; null is a missing value."""

_WHOLE_NUMBER = re.compile(rb"[-+]?[0-9]{1,99}")

_WHOLE_BITS = {16: 11, 32: 24, 64: 53}
"""Width of a float -> width of the whole numbers that it can tell apart: 2**53 and 2**53 + 1 are one float64."""


@dataclass(frozen=True)
class Column:
    """A column as a list of values and, for every row, the index of its value.

    Joined and text columns repeat few values in many rows: each value is processed only once.
    """

    values: pa.Array
    rows: NDArray[Any]  # (rows,) index into values

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> "Column":
        """One value per row; for a dictionary column, one value per dictionary entry.

        Args:
            column: in its normal type, see `normal`.
        """
        if not pa.types.is_dictionary(column.type):
            return cls(column.combine_chunks(), np.arange(len(column), dtype=np.int32))
        encoded = column.unify_dictionaries().combine_chunks()
        values, codes = encoded.dictionary, encoded.indices
        if codes.null_count:
            codes = codes.fill_null(len(values))
            values = pa.concat_arrays([values, pa.nulls(1, values.type)])
        return cls(values, codes.to_numpy())

    def counts(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many of the given rows have each value."""
        return np.bincount(self.rows[rows], minlength=len(self.values))


@dataclass(frozen=True)
class Lists:
    """Lists of ids without nulls, one after the other."""

    lengths: NDArray[np.int64]  # (lists,)
    items: IdArray  # (sum of lengths,)
    dropped: NDArray[np.int64]  # (lists,) number of nulls, or parts of a text that are no ids, removed from each list
    weights: NDArray[np.float64] | None = None  # (sum of lengths,) of the items, as in the log; None: all count alike

    def last(self, length: int) -> "Lists":
        """The last `length` items of each list."""
        kept = np.minimum(self.lengths, length)
        if np.array_equal(kept, self.lengths):
            return self
        from_end = np.repeat(np.cumsum(self.lengths), self.lengths) - np.arange(len(self.items))
        return Lists(kept, self.items.filter(pa.array(from_end <= length)), self.dropped)


def value_kind(type_: pa.DataType) -> Kind | None:
    """Kind of the ids in a column of this type; None if it cannot hold ids (or holds only nulls)."""
    if is_text(type_) or is_bytes(type_):
        return "text"
    return "int" if is_number(type_) else None


def as_ids(values: pa.Array, kind: Kind) -> tuple[IdArray, NDArray[np.bool_]]:
    """Ids of one kind, and which values are not valid ids because they are not whole numbers, or too large for a float.

    NaN is missing. An unsigned 64-bit integer keeps its bits, so that large hashes stay distinct. Floats become ids
    only where all whole numbers have a float of their own; beyond, several ids of the source are one float.
    """
    type_ = values.type
    fine = np.zeros(len(values), dtype=bool)
    if values.null_count == len(values):
        return pa.nulls(len(values), pa.int64() if kind == "int" else pa.large_string()), fine
    if kind == "text":
        return as_texts(values), fine
    if pa.types.is_uint64(type_):
        return values.view(pa.int64()), fine
    if pa.types.is_floating(type_):
        numbers = as_numbers(values)
        missing = np.isnan(numbers)
        whole = (np.floor(numbers) == numbers) & (np.abs(numbers) < _first_indistinct(type_))
        return pa.array(np.where(whole, numbers, 0).astype(np.int64), mask=~whole), ~whole & ~missing
    return values.cast(pa.int64()), fine


def indistinct(values: pa.Array) -> NDArray[np.bool_]:
    """Which values are whole numbers in floats that are too large to tell neighbouring whole numbers apart."""
    if not pa.types.is_floating(values.type):
        return np.zeros(len(values), dtype=bool)
    numbers = as_numbers(values)
    return np.isfinite(numbers) & (np.abs(numbers) >= _first_indistinct(values.type))


def _first_indistinct(type_: pa.DataType) -> float:
    return float(2 ** _WHOLE_BITS[type_.bit_width])


INDISTINCT = "value is a float too large to tell neighbouring whole numbers apart (float64 from 2**53 on)"


def as_texts(values: pa.Array) -> pa.Array:
    """Texts as large_string. Bytes are kept as they are, as Parquet also keeps texts that are not UTF-8."""
    if is_bytes(values.type):
        return values.cast(pa.large_binary()).view(pa.large_string())
    return values.cast(pa.large_string())


def ids_of(values: Sequence[int | str], kind: Kind) -> IdArray:
    """Ids from the experiment file, in the form of `as_ids`: numbers from 2**63 on keep their bits."""
    if kind == "text":
        return pa.array(values, pa.large_string())
    return pa.array([int(value) % 2**64 for value in values], pa.uint64()).view(pa.int64())


def not_utf8(values: pa.Array) -> NDArray[np.bool_]:
    """Which values are texts whose bytes are not UTF-8; Parquet files store texts unchecked."""
    wrong = np.zeros(len(values), dtype=bool)
    if not is_text(values.type):
        return wrong
    try:
        values.validate(full=True)
    except pa.ArrowInvalid:
        for i, value in enumerate(values.cast(pa.large_binary())):
            wrong[i] = value.is_valid and not _decodes(value.as_py())
    return wrong


def _decodes(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def printable(value: pa.Scalar) -> str:
    """An id for a message or a document; a text may not be valid UTF-8."""
    if pa.types.is_integer(value.type):
        return str(value.as_py())
    text: str = value.cast(pa.large_binary()).as_py().decode(errors="backslashreplace")
    return text


def as_numbers(values: pa.Array) -> NDArray[np.float64]:
    """Numbers as float64, NaN for null."""
    if values.null_count == len(values):
        return np.full(len(values), np.nan)
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.uint8())
    return values.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy()


def as_lists(values: pa.Array, kind: Kind, separator: str | None) -> Lists:
    """Lists of ids from a list column, or from text split at a separator; null is an empty list.

    Spaces around the parts of a text are removed, and empty parts are left out. If ids are whole numbers, so are the
    parts of a text.
    """
    if values.null_count == len(values):
        none = np.zeros(len(values), dtype=np.int64)
        return Lists(none, as_ids(pa.nulls(0), kind)[0], none)
    if separator is not None:
        values = pc.split_pattern(as_texts(values), separator)
    lengths = pc.list_value_length(values).fill_null(0).to_numpy().astype(np.int64)
    items = values.flatten()
    if separator is not None:
        items = trimmed(items)
        filled = pc.not_equal(items, "").to_numpy(zero_copy_only=False)
        parts = Lists(sums(filled, lengths), items.filter(pa.array(filled)), np.zeros_like(lengths))
        return parts if kind == "text" else with_whole_numbers(parts)
    items, _ = as_ids(items, kind)
    if not items.null_count:
        return Lists(lengths, items, np.zeros_like(lengths))
    kept = sums(items.is_valid().to_numpy(zero_copy_only=False), lengths)
    return Lists(kept, items.drop_null(), lengths - kept)


def with_whole_numbers(lists: Lists) -> Lists:
    """Lists whose items are whole numbers, in the form of `as_ids`, instead of texts. Other texts are left out."""
    codes, distinct = factorize(lists.items)
    numbers = [_whole_number(value) for value in distinct.cast(pa.large_binary()).to_pylist()]
    items = pa.array(numbers, pa.uint64()).view(pa.int64()).take(pa.array(codes))
    valid = items.is_valid().to_numpy(zero_copy_only=False)
    lengths = sums(valid, lists.lengths)
    weights = None if lists.weights is None else lists.weights[valid]
    return Lists(lengths, items.drop_null(), lists.dropped + lists.lengths - lengths, weights)


def _whole_number(text: bytes) -> int | None:
    number = int(text) if _WHOLE_NUMBER.fullmatch(text) else None
    return number % 2**64 if number is not None and -(2**63) <= number < 2**64 else None


def trimmed(texts: pa.Array) -> pa.Array:
    """Texts without the spaces around them."""
    wrong = not_utf8(texts)
    if not wrong.any():
        return pc.utf8_trim_whitespace(texts)
    # The kernel that trims Unicode whitespace fails at the first text that is not UTF-8.
    trimmed = pc.utf8_trim_whitespace(pc.if_else(pa.array(wrong), "", texts))
    return pc.if_else(pa.array(wrong), pc.ascii_trim_whitespace(texts), trimmed)


def sums(flags: NDArray[np.bool_], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many flags are set in each list."""
    running = np.concatenate([[0], np.cumsum(flags)])
    ends = np.cumsum(lengths)
    return running[ends] - running[ends - lengths]


def factorize(values: IdArray) -> tuple[NDArray[Any], IdArray]:
    """Codes (-1 for null) and the distinct values that they represent."""
    encoded = values.dictionary_encode()
    return encoded.indices.fill_null(-1).to_numpy(), encoded.dictionary


def count_values(values: list[IdArray], weights: list[NDArray[Any]]) -> pa.Table:
    """Distinct values and the sum of their weights; nulls and values of weight 0 are left out.

    Returns:
        Columns `value` and `count` (int64), in an unspecified but reproducible order.
    """
    # Encoding first and summing codes takes a quarter of the time of Arrow's group_by on text.
    encoded = pa.chunked_array(values).combine_chunks().dictionary_encode()
    codes = encoded.indices.fill_null(len(encoded.dictionary)).to_numpy()
    sums = np.bincount(codes, np.concatenate(weights), minlength=len(encoded.dictionary) + 1)[:-1]
    counted = pa.table({"value": encoded.dictionary, "count": sums.astype(np.int64)})
    return counted.filter(pa.array(sums > 0))


def hash_values(values: IdArray) -> NDArray[np.uint64]:
    """A 64-bit hash of each value, the same on every machine and in every run; values must not be null."""
    # Here, because it is slow to import and every command imports this module. Not as an attribute of pandas: where an
    # import of pandas was cut off, as by a cancelled task, the next import in that process does not set `pandas.util`.
    from pandas.util import hash_array

    if pa.types.is_integer(values.type):
        return hash_array(values.to_numpy())
    codes, distinct = factorize(values)
    # The hash is computed from bytes, so texts that are not UTF-8 also have a hash.
    texts = distinct.cast(pa.large_binary()).to_numpy(zero_copy_only=False)
    return hash_array(texts.astype(object), categorize=False)[codes]


def positions(values: IdArray, vocabulary: IdArray) -> NDArray[np.int64]:
    """Index of each value in a vocabulary of distinct values; -1 for null and for values that are not in it."""
    if len(vocabulary) == 0:  # it may be of another kind than the values: it has seen none
        return np.full(len(values), -1, dtype=np.int64)
    codes, distinct = factorize(values)
    # The hash table is built over the smaller side: a vocabulary can be far larger than a unit.
    if len(distinct) < len(vocabulary):
        matches = pc.index_in(vocabulary, value_set=distinct)
        found = matches.is_valid().to_numpy(zero_copy_only=False)
        where = np.full(len(distinct) + 1, -1, dtype=np.int64)
        where[matches.drop_null().to_numpy()] = np.flatnonzero(found)
    else:
        matches = pc.index_in(distinct, value_set=vocabulary).fill_null(-1)
        where = np.append(matches.to_numpy().astype(np.int64), -1)
    return where[codes]  # the code -1 of null reads the last element
