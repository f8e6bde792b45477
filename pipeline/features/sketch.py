"""Mergeable summaries of numbers: weighted points for quantiles, moments for mean and deviation."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

MAX_POINTS = 16384
"""Maximum number of points in a summary. Data with no more distinct values than this is summarised exactly."""

_MERGED_AT_ONCE = 64  # the number of merge levels, each of which costs accuracy, grows with the logarithm to this base


class Summary(Protocol):
    """Fits an encoder to numbers: one part per unit of rows; the parts are merged into the encoder's state."""

    @property
    def is_small(self) -> bool:
        """Whether the parts of all units fit into one process; if not, each is a file until they are merged."""
        ...

    @abstractmethod
    def of(self, numbers: NDArray[np.float64], weights: NDArray[np.int64]) -> pa.Table:
        """The part of a unit: each number represents `weights` rows; numbers of weight 0 are left out."""

    @abstractmethod
    def merge(self, parts: Iterable[pa.Table]) -> pa.Table:
        """The encoder's state, which depends on the order of the parts."""


@dataclass(frozen=True)
class QuantileSummary:
    """Edges of buckets of equal weight."""

    buckets: int
    is_small = False

    def of(self, numbers: NDArray[np.float64], weights: NDArray[np.int64]) -> pa.Table:
        points = summarize(numbers, weights)
        return pa.table({"value": points.values, "weight": points.weights})

    def merge(self, parts: Iterable[pa.Table]) -> pa.Table:
        points = merge(Points(part["value"].to_numpy(), part["weight"].to_numpy()) for part in parts)
        return pa.table({"edge": bucket_edges(points, self.buckets)})


@dataclass(frozen=True)
class MomentsSummary:
    """Mean and standard deviation."""

    is_small = True

    def of(self, numbers: NDArray[np.float64], weights: NDArray[np.int64]) -> pa.Table:
        seen = weights > 0
        moments = Moments.of(numbers[seen], weights[seen])
        return pa.table({"count": [moments.count], "mean": [moments.mean], "squares": [moments.squares]})

    def merge(self, parts: Iterable[pa.Table]) -> pa.Table:
        each = (Moments(**part.to_pylist()[0]) for part in parts)
        moments = reduce(Moments.combined, each, Moments(0, 0.0, 0.0))
        return pa.table({"mean": [moments.mean], "deviation": [moments.deviation]})


@dataclass(frozen=True)
class Points:
    """Distinct values in ascending order, and how often each was seen."""

    values: NDArray[np.float64]
    weights: NDArray[np.int64]


def summarize(values: NDArray[np.float64], weights: NDArray[np.int64]) -> Points:
    """Summarises numbers; none may be NaN, and numbers of weight 0 are left out."""
    distinct, codes = np.unique(values[weights > 0], return_inverse=True)
    summed = np.bincount(codes, weights[weights > 0], minlength=len(distinct)).astype(np.int64)
    return _compress(Points(distinct, summed))


def merge(summaries: Iterable[Points]) -> Points:
    """Merges summaries in the given order, with only a few of them in memory at a time.

    One compression moves a quantile by at most 1 / MAX_POINTS of the rows, so the total shift is at most that times the
    number of levels, which is 1 + log64(number of summaries).
    """
    merged = [_merge_few(group) for group in _groups(summaries)]
    while len(merged) > 1:
        merged = [_merge_few(group) for group in _groups(merged)]
    return merged[0] if merged else Points(np.empty(0), np.empty(0, dtype=np.int64))


def bucket_edges(points: Points, buckets: int) -> NDArray[np.float64]:
    """Values that divide the data into buckets of equal weight, without repeats; fewer for few distinct values.

    Edge i is the smallest value v with share(values <= v) >= i / buckets: numpy's quantile of method "inverted_cdf".
    A value equal to an edge belongs to the bucket above it.
    """
    if not len(points.values):
        return np.empty(0)
    cumulative = np.cumsum(points.weights)
    total = int(cumulative[-1])
    # Integer arithmetic, so that no rounding of i / buckets moves an edge: cumulative * buckets >= i * total.
    targets = -(-np.arange(1, buckets, dtype=np.int64) * total // buckets)
    return np.unique(points.values[np.searchsorted(cumulative, targets)])


@dataclass(frozen=True)
class Moments:
    """Number, mean and sum of squared differences from the mean."""

    count: int
    mean: float
    squares: float

    @classmethod
    def of(cls, values: NDArray[np.float64], weights: NDArray[np.int64]) -> "Moments":
        """Moments of numbers that each represent `weights` rows; none may be NaN."""
        count = int(weights.sum())
        if count == 0:
            return cls(0, 0.0, 0.0)
        mean = float(np.sum(values * weights) / count)
        return cls(count, mean, float(np.sum(weights * (values - mean) ** 2)))

    def combined(self, other: "Moments") -> "Moments":
        """Moments of both together (Chan, Golub and LeVeque 1979)."""
        count = self.count + other.count
        if count == 0:
            return self
        difference = other.mean - self.mean
        mean = self.mean + difference * other.count / count
        squares = self.squares + other.squares + difference**2 * self.count * other.count / count
        return Moments(count, mean, squares)

    @property
    def deviation(self) -> float:
        """Standard deviation over all rows (ddof 0); 1 where all values are equal, so that dividing by it is safe."""
        deviation = (self.squares / self.count) ** 0.5 if self.count else 0.0
        # With equal values the deviation consists of rounding errors, and would blow up any other value.
        return deviation if deviation > 1e-12 * abs(self.mean) else 1.0


def _groups(summaries: Iterable[Points]) -> Iterator[list[Points]]:
    iterator = iter(summaries)
    while group := list(islice(iterator, _MERGED_AT_ONCE)):
        yield group


def _merge_few(summaries: list[Points]) -> Points:
    return summarize(
        np.concatenate([summary.values for summary in summaries]),
        np.concatenate([summary.weights for summary in summaries]),
    )


def _compress(points: Points) -> Points:
    """Joins neighbouring points into at most MAX_POINTS of about equal weight, each at its largest value.

    The share of rows up to a remaining value is exact.
    """
    if len(points.values) <= MAX_POINTS:
        return points
    cumulative = np.cumsum(points.weights)
    group = (cumulative - 1) * MAX_POINTS // cumulative[-1]
    last = np.flatnonzero(np.append(group[1:] != group[:-1], True))
    return Points(points.values[last], np.diff(cumulative[last], prepend=0))
