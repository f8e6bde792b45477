"""Quantiles of a number within groups of another number, and back: the target of D2Q.

Zhan et al., Deconfounding Duration Bias in Watch-time Prediction for Video Recommendation, KDD 2022.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.features.encoder_files import read_encoder, write_encoder
from pipeline.features.sketch import bucket_edges, summarize

SAMPLE_ROWS = 2**18
"""Rows that quantiles are fitted on: all, or those with the smallest hashes."""

MOST_POINTS = 1024
"""Points of the quantile function of a group, between which it is linear."""


def sample(keys: NDArray[np.uint64], references: NDArray[np.float32], labels: NDArray[np.float64]) -> pa.Table:
    """At most SAMPLE_ROWS rows, those with the smallest keys, which does not depend on the order of the rows."""
    order = np.lexsort((labels, references, keys))[:SAMPLE_ROWS]
    return pa.table({"key": keys[order], "reference": references[order], "label": labels[order]})


def merged(parts: Iterable[pa.Table]) -> pa.Table:
    """The sample of the rows of all parts, of which two are in memory at a time."""

    def both(one: pa.Table, two: pa.Table) -> pa.Table:
        together = pa.concat_tables([one, two])
        return sample(*(together[name].to_numpy() for name in ("key", "reference", "label")))

    nothing = sample(np.empty(0, np.uint64), np.empty(0, np.float32), np.empty(0))
    return reduce(both, parts, nothing)


@dataclass(frozen=True)
class GroupQuantiles:
    """Groups of about equally many rows by a reference, and in each the quantile function of the labels.

    A label's quantile is the share of smaller labels plus half the share of equal ones (the mid-distribution function),
    linear in between, so that every label has one quantile and every quantile one label.
    """

    edges: NDArray[np.float32]  # (groups - 1,): the largest reference of each group but the last
    labels: list[NDArray[np.float64]]  # per group: points, ascending
    quantiles: list[NDArray[np.float64]]  # per group: the quantiles of these points, ascending

    @classmethod
    def fit(cls, rows: pa.Table, groups: int) -> "GroupQuantiles":
        """Fits to the rows of a sample. Rows with equal references are in one group, so that there may be fewer."""
        references, labels = rows["reference"].to_numpy(), rows["label"].to_numpy()
        edges = bucket_edges(summarize(references.astype(np.float64), np.ones(len(references), np.int64)), groups)
        edges = edges[edges < references.max(initial=-np.inf)].astype(np.float32)
        group_of = np.searchsorted(edges, references, side="left")
        fitted = [_points(labels[group_of == group]) for group in range(len(edges) + 1)]
        return cls(edges, [points for points, _ in fitted], [quantiles for _, quantiles in fitted])

    def quantiles_of(self, labels: NDArray[np.floating], references: NDArray[np.float32]) -> NDArray[np.float32]:
        """Quantile of each label within the group of its reference; NaN where either is NaN."""
        return self._interpolated(labels, references, self.labels, self.quantiles).astype(np.float32)

    def labels_of(self, quantiles: NDArray[np.floating], references: NDArray[np.float32]) -> NDArray[np.float64]:
        """The inverse of `quantiles_of`. A quantile outside those of the group's labels is its first or last label."""
        return self._interpolated(quantiles, references, self.quantiles, self.labels)

    def write(self, table: str, name: str) -> None:
        lower = np.concatenate([[-np.inf], self.edges.astype(np.float64)])
        counts = [len(points) for points in self.labels]
        columns = {
            "above": np.repeat(lower, counts),
            "label": np.concatenate(self.labels),
            "quantile": np.concatenate(self.quantiles),
        }
        write_encoder(table, name, pa.table(columns))

    @classmethod
    def read(cls, table: str, name: str) -> "GroupQuantiles":
        state = read_encoder(table, name)
        lower, first = np.unique(state["above"].to_numpy(), return_index=True)
        labels, quantiles = (np.split(state[column].to_numpy(), first[1:]) for column in ("label", "quantile"))
        return cls(lower[1:].astype(np.float32), labels, quantiles)

    def _interpolated(
        self,
        values: NDArray[np.floating],
        references: NDArray[np.float32],
        points: list[NDArray[np.float64]],
        results: list[NDArray[np.float64]],
    ) -> NDArray[np.float64]:
        found = np.full(len(values), np.nan)
        groups = np.where(np.isnan(references), -1, np.searchsorted(self.edges, references, side="left"))
        for group in np.unique(groups[groups >= 0]).tolist():
            members = np.flatnonzero(groups == group)
            found[members] = np.interp(values[members].astype(np.float64), points[group], results[group])
        return found


def _points(labels: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most MOST_POINTS of the distinct labels, the smallest and the largest among them, and their quantiles."""
    distinct, counts = np.unique(labels, return_counts=True)
    quantiles = (np.cumsum(counts) - counts / 2) / max(len(labels), 1)
    if len(distinct) > MOST_POINTS:
        wanted = np.searchsorted(quantiles, np.linspace(quantiles[0], quantiles[-1], MOST_POINTS))
        chosen = np.unique(np.minimum(wanted, len(distinct) - 1))
        distinct, quantiles = distinct[chosen], quantiles[chosen]
    return distinct, quantiles
