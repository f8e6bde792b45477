"""Computes the `tasks` of evaluation-SPLIT.json: every metric of every task, overall and per scenario."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.inputs import TaskKind
from pipeline.config.logs import ScenarioConfig, TaskConfig
from pipeline.errors import DivergedError, UserError
from pipeline.evaluation.log_unit import Factors, LogUnit, log_units, needs_smearing, smearing_factors
from pipeline.evaluation.scenario_combinations import combination_codes, combination_labels
from pipeline.metrics import functions
from pipeline.metrics.functions import Float64
from pipeline.metrics.registry import (
    LOG_UNIT,
    METRICS,
    GroupMetric,
    RowMetric,
    ScenarioMetric,
    column_metrics,
    metrics_of,
    ranking_metric,
)
from pipeline.table.target_quantiles import TargetQuantiles

Number = TypeVar("Number", np.float32, np.int64)


@dataclass
class Predictions:
    """Predictions of a model for rows of a split, with the labels and everything else that metrics need.

    A binary task's prediction is a probability, a continuous one's a value on the training scale.
    """

    labels: NDArray[np.float32]  # (rows, tasks), NaN where a row has no label
    predictions: NDArray[np.float32]  # (rows, tasks)
    weights: NDArray[np.float32]  # (rows,), 0 for padding
    scenarios: NDArray[np.int32]  # (rows, levels), indices into ScenarioConfig.labels
    groups: NDArray[np.int64] | None = None  # (rows,), for grouped AUC: users, for example
    task_weights: NDArray[np.float32] | None = None  # (rows, tasks); None: all labels that exist count `weights`
    deviations: NDArray[np.float32] | None = None  # (rows, tasks of the experiment), see HeadOutput
    references: NDArray[np.float32] | None = None  # (rows, tasks of the experiment), see Batch

    @staticmethod
    def concatenate(parts: "Sequence[Predictions]") -> "Predictions":
        """The rows of all parts. What only some models or experiments have, either all parts have or none has."""
        return Predictions(
            labels=np.concatenate([part.labels for part in parts]),
            predictions=np.concatenate([part.predictions for part in parts]),
            weights=np.concatenate([part.weights for part in parts]),
            scenarios=np.concatenate([part.scenarios for part in parts]),
            groups=_concatenated("groups", [part.groups for part in parts]),
            task_weights=_concatenated("weights for tasks", [part.task_weights for part in parts]),
            deviations=_concatenated("deviations", [part.deviations for part in parts]),
            references=_concatenated("references", [part.references for part in parts]),
        )

    def valid(self) -> "Predictions":
        """The rows without padding, which has weight 0."""
        return self._take(np.flatnonzero(self.weights > 0))

    def canonical(self) -> "Predictions":
        """The rows in an order that depends on the rows alone: by scenario, label, prediction, weight and group.

        Rows arrive in another order when the number of workers changes, and float sums depend on the order of their
        terms. Rows that are equal in all of these are interchangeable, so sums over this order are equal bit by bit.
        """
        keys = [*self.scenarios.T, *self.labels.T, *self.predictions.T, self.weights]
        if self.groups is not None:
            keys.append(self.groups)
        for columns in (self.task_weights, self.deviations, self.references):
            if columns is not None:
                keys += [*columns.T]
        return self._take(np.lexsort(keys[::-1]))

    def references_of(self, column: int) -> NDArray[np.float32] | None:
        """The column that the target of a task depends on, ``(rows,)``; None if no target depends on one."""
        return None if self.references is None else self.references[:, column]

    def deviations_of(self, column: int) -> NDArray[np.float32] | None:
        """The predicted standard deviations of a task, ``(rows,)``; None if no task has one."""
        return None if self.deviations is None else self.deviations[:, column]

    def labelled(self, column: int, members: NDArray[np.intp]) -> NDArray[np.intp]:
        """Those of some rows that have a label of a task."""
        return members[~np.isnan(self.labels[members, column])]

    def weights_of(self, column: int, members: NDArray[np.intp]) -> NDArray[np.float32]:
        """The weights of some rows for a task."""
        return self.weights[members] if self.task_weights is None else self.task_weights[members, column]

    @property
    def has_weights(self) -> bool:
        """Whether a row with a label counts other than 1."""
        return self.task_weights is not None and bool(np.any((self.task_weights != 1) & ~np.isnan(self.labels)))

    def _take(self, rows: NDArray[np.intp]) -> "Predictions":
        return Predictions(
            labels=self.labels[rows],
            predictions=self.predictions[rows],
            weights=self.weights[rows],
            scenarios=self.scenarios[rows],
            groups=None if self.groups is None else self.groups[rows],
            task_weights=None if self.task_weights is None else self.task_weights[rows],
            deviations=None if self.deviations is None else self.deviations[rows],
            references=None if self.references is None else self.references[rows],
        )


def _concatenated(what: str, arrays: Sequence[NDArray[Number] | None]) -> NDArray[Number] | None:
    found = [array for array in arrays if array is not None]
    if len(found) not in (0, len(arrays)):
        raise ValueError(f"{len(found)} of {len(arrays)} parts have {what}: either all or none must have them")
    return np.concatenate(found) if found else None


def evaluate(
    predictions: Predictions,
    tasks: list[TaskConfig],
    scenarios: list[ScenarioConfig],
    smearing: Mapping[str, Factors] | None = None,
    quantiles: TargetQuantiles | None = None,
) -> dict[str, Any]:
    """Exact metrics of all tasks, the same bit by bit for any order of the rows.

    Args:
        predictions: all rows of the split, from all workers; rows of weight 0 are left out.
        tasks: in the order of the columns of labels and predictions.
        scenarios: the levels, in the order of the columns of scenario indices.
        smearing: factors of each task that needs them; None: they are estimated on these rows.
        quantiles: of tasks with `quantiles_within`.

    Returns:
        ``{"rows": N, "tasks": {TASK: {"kind": ..., METRIC: value or None, ..., "scenarios": {"tab=1": {...}}}},
        "smearing": {TASK: factors}, "statistics": {TASK: "mean"}}``, the last for tasks with metrics in the log's unit;
        None means undefined. The scenarios are every label of every level, with or without rows, and with more than
        one level every combination that occurs ("tab=1/user=new"). `macro_auc` is the unweighted mean AUC over the
        finest scenarios where it is defined, `scenarios_undefined` the number of those where it is not. The `rows` of
        a task are those that have a label of it; `weight`, the sum of their weights, exists if a weight is not 1.

    Raises:
        UserError: a prediction is not finite, so no metric can be computed.
    """
    rows = predictions.valid()
    _check_finite(rows, tasks)
    rows = rows.canonical()
    cells, finest = cells_of(rows.scenarios, scenarios)
    everything, has_weights = np.arange(len(rows.weights)), rows.has_weights
    factors = smearing_of(rows, tasks, scenarios, quantiles) if smearing is None else smearing
    units = log_units(tasks, scenarios, factors, quantiles)
    result: dict[str, Any] = {}
    for column, (task, unit) in enumerate(zip(tasks, units, strict=True)):
        in_log_unit = _in_log_unit(rows, column, unit) if task.is_rescaled else None
        measured = {
            label: _cell(rows, column, task.kind, members, has_weights, in_log_unit) for label, members in cells.items()
        }
        result[task.name] = {
            "kind": task.kind,
            **_cell(rows, column, task.kind, everything, has_weights, in_log_unit),
            **_over_scenarios(task.kind, [measured[label] for label in finest]),
            "scenarios": measured,
        }
    statistics = {unit.task.name: unit.statistic for unit in units if unit.task.is_rescaled}
    return {"rows": len(rows.weights), "tasks": result, "smearing": factors, "statistics": statistics}


def smearing_of(
    rows: Predictions,
    tasks: list[TaskConfig],
    scenarios: list[ScenarioConfig],
    quantiles: TargetQuantiles | None = None,
) -> dict[str, dict[str, float]]:
    """The factors of each task that needs them, from rows in their canonical order."""
    factors, everything = {}, np.arange(len(rows.weights))
    for column, unit in enumerate(log_units(tasks, scenarios, {}, quantiles)):
        if needs_smearing(unit.task):
            members = rows.labelled(column, everything)
            references = rows.references_of(column)
            observed, predicted = (
                unit.amounts(values[members, column], None if references is None else references[members])
                for values in (rows.labels, rows.predictions)
            )
            weights, indices = rows.weights_of(column, members), rows.scenarios[members]
            factors[unit.task.name] = smearing_factors(observed, predicted, weights, indices, scenarios)
    return factors


def metric_value(evaluation: dict[str, Any], metric: str) -> float | None:
    """The value of a metric such as ``click.auc``, for early stopping; None where it is undefined.

    Raises:
        UserError: there is no such metric, or it does not rank models.
    """
    ranking_metric(metric)
    task, _, name = metric.rpartition(".")
    known = [f"{t}.{m}" for t, cell in evaluation["tasks"].items() for m in cell if m in METRICS and METRICS[m].ranks]
    if metric not in known:
        raise UserError(f"There is no metric {metric!r} in the evaluation; use one of {', '.join(known)}.")
    value: float | None = evaluation["tasks"][task][name]
    return value


def _check_finite(rows: Predictions, tasks: list[TaskConfig]) -> None:
    # Without labels, nothing has trained the predictions of a scenario, and no metric reads them.
    wrong = np.count_nonzero(~np.isfinite(rows.predictions) & ~np.isnan(rows.labels), axis=0)
    for task, count in zip(tasks, wrong, strict=True):
        if count:
            raise DivergedError(
                f"{count} of {len(rows.weights)} predictions of task {task.name!r} are not finite numbers: training "
                "has probably diverged.",
                "Evaluate an earlier checkpoint, or train with a lower learning rate.",
            )


def cells_of(
    indices: NDArray[np.int32], scenarios: list[ScenarioConfig]
) -> tuple[dict[str, NDArray[np.intp]], list[str]]:
    """Rows of every scenario cell, ascending, by label; and the labels of the finest cells."""
    cells = dict.fromkeys(chain.from_iterable(level.labels for level in scenarios), np.empty(0, np.intp))
    for i, level in enumerate(scenarios):
        cells |= _split(indices[:, [i]], [level])
    if len(scenarios) == 1:
        return cells, list(cells)
    combinations = _split(indices, scenarios)
    return cells | combinations, list(combinations)


def _split(indices: NDArray[np.int32], levels: list[ScenarioConfig]) -> dict[str, NDArray[np.intp]]:
    """Rows of every combination of these levels' scenarios that occurs, by label."""
    codes = combination_codes(indices, levels)
    order = np.argsort(codes, kind="stable")
    occurring, starts = np.unique(codes[order], return_index=True)
    return dict(zip(combination_labels(occurring, levels), np.split(order, starts)[1:], strict=True))


def _in_log_unit(rows: Predictions, column: int, unit: LogUnit) -> tuple[Float64, Float64]:
    """Labels and predictions of a task, ``(rows,)`` each."""
    references = rows.references_of(column)
    predictions = unit.predictions(rows.predictions[:, column], rows.scenarios, rows.deviations_of(column), references)
    return unit.labels(rows.labels[:, column], references).astype(np.float64), predictions.astype(np.float64)


def _cell(
    rows: Predictions,
    column: int,
    kind: TaskKind,
    members: NDArray[np.intp],
    has_weights: bool,
    in_log_unit: tuple[Float64, Float64] | None,
) -> dict[str, float | int | None]:
    """The metrics of a task on those of some rows that have its label, with counts and means."""
    members = rows.labelled(column, members)
    labels, predictions = rows.labels[members, column], rows.predictions[members, column]
    weights = rows.weights_of(column, members)
    cell: dict[str, float | int | None] = {
        metric.name: metric.function(labels, predictions, weights)
        for metric in column_metrics(kind)
        if isinstance(metric, RowMetric)
    }
    for metric in metrics_of(kind):
        if isinstance(metric, GroupMetric) and rows.groups is not None:
            value, used, skipped = metric.function(labels, predictions, weights, rows.groups[members])
            cell |= {metric.name: value} | dict(zip(metric.counts, (used, skipped), strict=True))
    cell["rows"] = len(members)
    if has_weights:
        cell["weight"] = float(np.sum(weights, dtype=np.float64))
    if kind == "binary":
        return cell | {"positives": int(np.count_nonzero(labels > 0))}
    cell |= {"mean_label": functions.mean(labels, weights), "mean_prediction": functions.mean(predictions, weights)}
    if in_log_unit is not None:
        cell |= _log_unit_cell(in_log_unit[0][members], in_log_unit[1][members], weights)
    return cell


def _log_unit_cell(labels: Float64, predictions: Float64, weights: NDArray[np.float32]) -> dict[str, float | None]:
    """The metrics in the log's unit. Those that float64 cannot hold are undefined: a diverging model may predict
    logarithms whose exponential is too large."""
    with np.errstate(over="ignore", invalid="ignore"):
        cell = {
            metric.name: metric.function(labels, predictions, weights)
            for metric in column_metrics("continuous", LOG_UNIT)
            if isinstance(metric, RowMetric)
        }
        cell["mean_label_log_unit"] = functions.mean(labels, weights)
        cell["mean_prediction_log_unit"] = functions.mean(predictions, weights)
    return {name: value if value is not None and np.isfinite(value) else None for name, value in cell.items()}


def _over_scenarios(kind: TaskKind, cells: list[dict[str, float | int | None]]) -> dict[str, float | int | None]:
    """The metrics computed from those of the finest scenarios, and the numbers of scenarios left out."""
    result: dict[str, float | int | None] = {}
    for metric in metrics_of(kind):
        if isinstance(metric, ScenarioMetric):
            defined = [value for cell in cells if (value := cell[metric.row_metric]) is not None]
            result[metric.name] = metric.function(defined) if defined else None
            result[metric.undefined_count] = len(cells) - len(defined)
    return result
