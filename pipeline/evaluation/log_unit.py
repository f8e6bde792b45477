"""Predictions of continuous tasks in the unit of the log's column, as means or as medians.

A task with `transform: log1p` is trained on z = ln(1 + s y), s being its `scale`. A loss of z, such as mse, predicts
mu, the mean of the logarithm, and exp(mu) - 1 is about the median of s y: the mean is larger, because the exponential
of a mean is less than the mean of exponentials. The mean of 1 + s y is exp(mu) times a factor:

- If the loss predicts the standard deviation d of z too (`lognormal`), the factor of a row is exp(d² / 2).
- Otherwise it is a smearing factor, estimated on rows with labels (Duan, Smearing Estimate, JASA 1983). Duan takes the
  mean of exp(z - mu). Here it is the ratio of sums, ``sum w exp(z) / sum w exp(mu)``: Duan's mean weighted by exp(mu),
  so that predictions and labels of these rows have the same total. There is one factor per finest scenario; where rows
  are few it is drawn towards the factor of the coarser scenario, down to the factor of all rows:
  ``(n r + k parent) / (n + k)``, with k = 200 rows, and the ratio r and the number n of the scenario's rows. Where rows
  have weights, n is their effective number ``(sum w)² / sum w²`` (Kish, Survey Sampling, 1965).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.config.logs import ScenarioConfig, TaskConfig
from pipeline.metrics.registry import ALL_ROWS

SHRINKAGE = 200.0
"""The weight of the coarser scenario's factor, in rows (k above)."""

Factors = Mapping[str, float]
"""Smearing factors of one task by scenario: ``{"all": f, "tab=1": f, "tab=1/user=new": f}``; empty if unknown."""


def needs_smearing(task: TaskConfig) -> bool:
    """Whether the mean of a task's target in the log's unit needs factors that are estimated on rows."""
    return task.transform == "log1p" and not task.loss_facts.of_logarithms


@dataclass(frozen=True)
class LogUnit:
    """Converts the labels and the predictions of one task from the training scale to the unit of the log's column."""

    task: TaskConfig
    levels: Sequence[ScenarioConfig]
    factors: Factors  # of this task

    @property
    def statistic(self) -> str:
        """What a prediction is, in words."""
        if self.task.kind == "binary":
            return "probability"
        if self.task.transform != "log1p":
            return self.task.loss_facts.statistic
        is_known = bool(self.factors) or not needs_smearing(self.task)
        return "mean" if self.task.prediction == "mean" and is_known else "median"

    def labels(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        return self.task.to_log_unit(values)

    def predictions(
        self,
        values: NDArray[np.floating],
        scenarios: NDArray[np.integer],
        deviations: NDArray[np.floating] | None = None,
    ) -> NDArray[np.floating]:
        """Converts predictions ``(rows,)``; not finite where float64 cannot hold a value.

        Args:
            values: on the training scale.
            scenarios: ``(rows, levels)``, indices into `ScenarioConfig.labels`.
            deviations: ``(rows,)``, of a loss that predicts the standard deviation.
        """
        if self.task.transform != "log1p" or self.statistic != "mean":
            return self.task.to_log_unit(values)
        if needs_smearing(self.task):
            return self.task.to_log_unit(values, np.log(_factor_of_rows(self.factors, scenarios, self.levels)))
        assert deviations is not None
        return self.task.to_log_unit(values, deviations.astype(np.float64) ** 2 / 2)


def smearing_factors(
    labels: NDArray[np.floating],
    predictions: NDArray[np.floating],
    weights: NDArray[np.floating],
    scenarios: NDArray[np.integer],
    levels: Sequence[ScenarioConfig],
) -> dict[str, float]:
    """The factors of all rows, of each scenario of the first level, and so on to the finest scenarios; see above.

    Args:
        labels: ``(rows,)``, logarithms.
        predictions: ``(rows,)``, predicted means of these logarithms.
        weights: ``(rows,)``.
        scenarios: ``(rows, levels)``, indices into `ScenarioConfig.labels`.
        levels: the levels, in the order of the columns of scenario indices.

    Returns:
        Factor by label, only of scenarios that have rows; empty if no row has a weight.
    """
    with np.errstate(over="ignore"):  # a model that has diverged
        row_weights = weights.astype(np.float64)
        observed = row_weights * np.exp(labels.astype(np.float64))
        predicted = row_weights * np.exp(predictions.astype(np.float64))
        factor = _ratios(np.array([np.sum(observed)]), np.array([np.sum(predicted)]), np.array([np.nan]))
    if not np.isfinite(factor[0]):
        return {}
    factors = {ALL_ROWS: float(factor[0])}
    of_row = np.broadcast_to(factor, len(row_weights))
    for depth in range(1, len(levels) + 1):
        codes = _codes(scenarios, levels[:depth])
        occurring, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
        total, squares, own, expected = (
            np.bincount(inverse, values).astype(np.float64)
            for values in (row_weights, row_weights**2, observed, predicted)
        )
        rows = np.divide(total**2, squares, out=np.zeros_like(total), where=squares > 0)
        parents = of_row[first]
        shrunk = (rows * _ratios(own, expected, parents) + SHRINKAGE * parents) / (rows + SHRINKAGE)
        factors |= zip(_labels(occurring, levels[:depth]), shrunk.tolist(), strict=True)
        of_row = shrunk[inverse]
    return factors


def _ratios(
    observed: NDArray[np.float64], predicted: NDArray[np.float64], otherwise: NDArray[np.float64]
) -> NDArray[np.float64]:
    """observed / predicted; another value where one of the two sums is 0 or too large for float64."""
    is_defined = (observed > 0) & (predicted > 0) & np.isfinite(observed) & np.isfinite(predicted)
    return np.divide(observed, predicted, out=otherwise.copy(), where=is_defined)


def _factor_of_rows(
    factors: Factors, scenarios: NDArray[np.integer], levels: Sequence[ScenarioConfig]
) -> NDArray[np.float64]:
    """The factor of each row's finest scenario, or of the nearest coarser scenario that has one."""
    of_row = np.full(len(scenarios), factors[ALL_ROWS])
    for depth in range(1, len(levels) + 1):
        occurring, inverse = np.unique(_codes(scenarios, levels[:depth]), return_inverse=True)
        known = np.array([factors.get(label, np.nan) for label in _labels(occurring, levels[:depth])])[inverse]
        of_row = np.where(np.isnan(known), of_row, known)
    return of_row


def _codes(scenarios: NDArray[np.integer], levels: Sequence[ScenarioConfig]) -> NDArray[np.intp]:
    """One number per combination of the first levels' scenarios."""
    shape = [len(level.labels) for level in levels]
    return np.ravel_multi_index(tuple(scenarios[:, : len(levels)].T), shape)


def _labels(codes: NDArray[np.intp], levels: Sequence[ScenarioConfig]) -> list[str]:
    """The labels of combinations, such as ``tab=1/user=new``."""
    index_of_level = zip(*np.unravel_index(codes, [len(level.labels) for level in levels]), strict=True)
    return ["/".join(level.labels[i] for level, i in zip(levels, index, strict=True)) for index in index_of_level]
