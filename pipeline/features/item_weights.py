"""Ids with weights, both in one text: `id:weight`."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.features.values import Lists, sums, trimmed

_NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
_INFINITE = r"[+-]?(?i:inf|infinity)"


def looks_weighted(parts: pa.Array) -> int:
    """How many texts are an id, one `:` and a number."""
    # As bytes: a text does not have to be UTF-8.
    found = pc.match_substring_regex(parts.cast(pa.large_binary()), rf"^[^:]+:\s*{_NUMBER}$")
    return int(pc.sum(found, min_count=0).as_py())


def looks_bracketed(texts: pa.Array) -> int:
    """How many texts are a list in brackets, as Python and JSON write it."""
    found = pc.match_substring_regex(texts.cast(pa.large_binary()), r"(?s)^\s*(\[.*\]|\(.*\)|\{.*\})\s*$")
    return int(pc.sum(found, min_count=0).as_py())


def split_weights(lists: Lists, mark: str) -> Lists:
    """Splits each item at the last `mark` into an id and a weight. An item without `mark` has weight 1.

    A weight that is not a number is NaN, see `weight_faults`.
    """
    pieces = pc.split_pattern(lists.items, mark, max_splits=1, reverse=True)
    found = (pc.list_value_length(pieces).to_numpy() == 2).nonzero()[0]
    texts = trimmed(pc.list_element(pieces.take(pa.array(found)), 1))
    numeric = pc.match_substring_regex(texts.cast(pa.large_binary()), f"^({_NUMBER}|{_INFINITE})$")
    numbers = pc.if_else(numeric, texts, "nan")
    weights = np.ones(len(lists.items))
    weights[found] = numbers.to_numpy(zero_copy_only=False).astype(np.float64)
    return replace(lists, items=trimmed(pc.list_element(pieces, 0)), weights=weights)


def weight_faults(lists: Lists) -> Iterable[tuple[NDArray[np.bool_], str]]:
    """Which lists have ids or weights that cannot be used, and why."""
    weights, lengths = lists.weights, lists.lengths
    assert weights is not None
    owner = np.repeat(np.arange(len(lengths)), lengths)
    yield sums(np.isnan(weights), lengths) > 0, "a weight is not a number"
    yield sums(weights < 0, lengths) > 0, "a weight is negative"
    yield sums(np.isinf(weights), lengths) > 0, "a weight is infinite"
    total = np.bincount(owner, weights, minlength=len(lengths))
    yield total > np.finfo(np.float32).max, "the sum of the weights is too large for float32"
    with np.errstate(over="ignore"):
        stored = weights.astype(np.float32)
    kept = np.bincount(owner, stored, minlength=len(lengths))
    yield (total > 0) & (kept == 0), "all weights above 0 are too small for float32"
    empty = pc.equal(lists.items, "").to_numpy(zero_copy_only=False)
    yield sums(empty, lengths) > 0, "an id before a weight is empty"
