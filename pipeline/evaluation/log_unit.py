"""Labels and predictions of continuous tasks in the unit of the log's column; predictions as means or as medians.

A task with `transform: log1p` is trained on z = ln(1 + s y), s being its `scale`. A loss of z, such as mse, predicts
mu, the mean of the logarithm, and exp(mu) - 1 is about the median of s y: the mean is larger, because the exponential
of a mean is less than the mean of exponentials. The mean of 1 + s y is exp(mu) times a factor:

- If the loss predicts the standard deviation d of z too (`lognormal`), the factor of a row is exp(d² / 2).
- Otherwise it is a smearing factor, estimated on rows with labels (Duan, Smearing Estimate, JASA 1983). Duan takes the
  mean of exp(z - mu). Here it is the ratio of sums, ``sum w exp(z) / sum w exp(mu)``: Duan's mean weighted by exp(mu),
  so that predictions and labels of these rows have the same total. There is one factor per finest scenario; where rows
  are few it is drawn towards the factor of the coarser scenario, down to the factor of all rows:
  ``(n r + k parent) / (n + k)``, with k = 300 rows, and the ratio r and the number n of the scenario's rows. Where rows
  have weights, n is their effective number ``(sum w)² / sum w²`` (Kish, Survey Sampling, 1965).

If y is relative to another column c, both sums weight each row by c too, so that totals are those of c y. With
`quantiles_within` the target is a quantile, and the label at the predicted quantile is about the median; the mean is
this label times a smearing factor, which is then a ratio of sums of labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.config.logs import ScenarioConfig, TaskConfig
from pipeline.evaluation.scenario_combinations import combination_codes, combination_labels
from pipeline.features.group_quantiles import GroupQuantiles
from pipeline.metrics.registry import ALL_ROWS
from pipeline.table.target_quantiles import TargetQuantiles

SHRINKAGE = 300.0
"""The weight of the coarser scenario's factor, in rows (k above)."""

PROBABILITY = "probability"
"""The statistic of a binary task."""

Factors = Mapping[str, float]
"""Smearing factors of one task by scenario: ``{"all": f, "tab=1": f, "tab=1/user=new": f}``; empty if unknown."""


def needs_smearing(task: TaskConfig) -> bool:
    """Whether the mean of a task's target in the log's unit needs factors that are estimated on rows."""
    return task.quantiles_within is not None or (task.transform == "log1p" and not task.loss_facts.of_logarithms)


@dataclass(frozen=True)
class LogUnit:
    """Converts the labels and the predictions of one task from the training scale to the unit of the log's column."""

    task: TaskConfig
    levels: Sequence[ScenarioConfig]
    factors: Factors  # of this task
    quantiles: GroupQuantiles | None = None  # of a task with `quantiles_within`

    @property
    def statistic(self) -> str:
        """What a prediction is, in words."""
        if self.task.kind == "binary":
            return PROBABILITY
        if self.task.transform != "log1p" and self.quantiles is None:
            return self.task.loss_facts.statistic
        is_known = bool(self.factors) or not needs_smearing(self.task)
        return "mean" if self.task.prediction == "mean" and is_known else "median"

    def labels(
        self, values: NDArray[np.floating], references: NDArray[np.float32] | None = None
    ) -> NDArray[np.floating]:
        """Converts labels ``(rows,)``; see `predictions`."""
        return self._from_target(self.task.to_log_unit(values), references)

    def amounts(self, values: NDArray[np.floating], references: NDArray[np.float32] | None) -> NDArray[np.floating]:
        """What a smearing factor multiplies, of labels or predictions ``(rows,)``: labels at quantiles, or ``1 + s y``,
        times the row's reference if y is relative to it, so that totals are those of the log's unit."""
        with np.errstate(over="ignore"):  # a model that has diverged
            wide = values.astype(np.float64)
            return self._from_target(wide if self.quantiles is not None else np.exp(wide), references)

    def predictions(
        self,
        values: NDArray[np.floating],
        scenarios: NDArray[np.integer],
        deviations: NDArray[np.floating] | None = None,
        references: NDArray[np.float32] | None = None,
    ) -> NDArray[np.floating]:
        """Converts predictions ``(rows,)``; not finite where float64 cannot hold a value.

        Args:
            values: on the training scale.
            scenarios: ``(rows, levels)``, indices into `ScenarioConfig.labels`.
            deviations: ``(rows,)``, of a loss that predicts the standard deviation.
            references: ``(rows,)``, see `Batch.references`; None: no target depends on another column. Where it is NaN,
                the other column cannot be used, and the result is NaN.
        """
        is_median = self.statistic != "mean"
        if is_median or (self.task.transform != "log1p" and self.quantiles is None):
            return self.labels(values, references)
        if not needs_smearing(self.task):
            assert deviations is not None
            return self._from_target(self.task.to_log_unit(values, deviations.astype(np.float64) ** 2 / 2), references)
        factors = _factor_of_rows(self.factors, scenarios, self.levels)
        if self.quantiles is not None:
            return self.labels(values, references) * factors
        return self._from_target(self.task.to_log_unit(values, np.log(factors)), references)

    def _from_target(
        self, values: NDArray[np.floating], references: NDArray[np.float32] | None
    ) -> NDArray[np.floating]:
        """Labels from ratios to `relative_to` or from quantiles; other values are not changed."""
        if references is None or self.task.reference is None:
            return values
        return values * references if self.quantiles is None else self.quantiles.labels_of(values, references)


def log_units(
    tasks: Sequence[TaskConfig],
    levels: Sequence[ScenarioConfig],
    smearing: Mapping[str, Factors],
    quantiles: TargetQuantiles | None,
) -> list[LogUnit]:
    """One per task, with its smearing factors and quantiles if it has any."""
    found = quantiles or {}
    return [LogUnit(task, levels, smearing.get(task.name, {}), found.get(task.name)) for task in tasks]


def smearing_factors(
    observed: NDArray[np.floating],
    predicted: NDArray[np.floating],
    weights: NDArray[np.floating],
    scenarios: NDArray[np.integer],
    levels: Sequence[ScenarioConfig],
) -> dict[str, float]:
    """The factors of all rows, of each scenario of the first level, and so on to the finest scenarios; see above.

    Args:
        observed: ``(rows,)``, `LogUnit.amounts` of labels.
        predicted: ``(rows,)``, the same of predictions.
        weights: ``(rows,)``.
        scenarios: ``(rows, levels)``, indices into `ScenarioConfig.labels`.
        levels: the levels, in the order of the columns of scenario indices.

    Returns:
        Factor by label, only of scenarios that have rows; empty if no row has a weight.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # a model that has diverged
        row_weights = weights.astype(np.float64)
        observed, predicted = row_weights * observed, row_weights * predicted
        factor = _ratios(np.array([np.sum(observed)]), np.array([np.sum(predicted)]), np.array([np.nan]))
    if not np.isfinite(factor[0]):
        return {}
    factors = {ALL_ROWS: float(factor[0])}
    of_row = np.broadcast_to(factor, len(row_weights))
    for depth in range(1, len(levels) + 1):
        codes = combination_codes(scenarios, levels[:depth])
        occurring, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
        total, squares, own, expected = (
            np.bincount(inverse, values).astype(np.float64)
            for values in (row_weights, row_weights**2, observed, predicted)
        )
        rows = np.divide(total**2, squares, out=np.zeros_like(total), where=squares > 0)
        parents = of_row[first]
        shrunk = (rows * _ratios(own, expected, parents) + SHRINKAGE * parents) / (rows + SHRINKAGE)
        factors |= zip(combination_labels(occurring, levels[:depth]), shrunk.tolist(), strict=True)
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
        occurring, inverse = np.unique(combination_codes(scenarios, levels[:depth]), return_inverse=True)
        known = np.array([factors.get(label, np.nan) for label in combination_labels(occurring, levels[:depth])])[
            inverse
        ]
        of_row = np.where(np.isnan(known), of_row, known)
    return of_row
