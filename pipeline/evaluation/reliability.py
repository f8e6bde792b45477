"""Reliability curves: mean prediction and mean label, bin by bin."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config.logs import ScenarioConfig, TaskConfig
from pipeline.evaluation.split_metrics import Predictions, cells_of
from pipeline.metrics.functions import Array
from pipeline.metrics.registry import ALL_ROWS

BINS = 15


def reliability(labels: Array, predictions: Array, weights: Array, bins: int = BINS) -> dict[str, list[Any]]:
    """Mean prediction and mean label of bins of about equal weight, ascending.

    Equal predictions share a bin: each distinct value goes to the bin that contains the middle of its weight. There
    are therefore fewer bins if there are few distinct values, or if one value has much of the weight.

    Args:
        labels: ``(rows,)``.
        predictions: ``(rows,)``, in the unit of the labels.
        weights: ``(rows,)``; rows of weight 0 are ignored.
        bins: maximum number of bins.

    Returns:
        ``{"predicted": means, "observed": means, "rows": counts}``, of equal length; empty without rows.
    """
    present = np.flatnonzero(weights > 0)
    order = present[np.argsort(predictions[present], kind="stable")]
    if not len(order):
        return {"predicted": [], "observed": [], "rows": []}
    labels, predictions, sorted_weights = labels[order], predictions[order], weights[order].astype(np.float64)
    value_of_row = np.concatenate(([0], np.cumsum(predictions[1:] != predictions[:-1])))
    weight = np.bincount(value_of_row, weights=sorted_weights)
    upto = np.cumsum(weight)
    bin_of_value = np.minimum((upto - weight / 2) / upto[-1] * bins, bins - 1).astype(np.intp)
    starts = np.flatnonzero(np.diff(bin_of_value[value_of_row], prepend=-1))
    total = np.add.reduceat(sorted_weights, starts)
    return {
        "predicted": (np.add.reduceat(sorted_weights * predictions, starts) / total).tolist(),
        "observed": (np.add.reduceat(sorted_weights * labels, starts) / total).tolist(),
        "rows": np.diff(starts, append=len(order)).tolist(),
    }


def reliability_of_tasks(
    predictions: Predictions, tasks: list[TaskConfig], scenarios: list[ScenarioConfig]
) -> dict[str, dict[str, dict[str, list[Any]]]]:
    """The curves of all tasks: ``{TASK: {CELL: curve}}``, the cells being "all" and every scenario that has rows
    with a label of the task.

    The same bit by bit for any order of the rows. Takes the same arguments as `evaluate`.
    """
    rows = predictions.valid().canonical()
    if not len(rows.weights):
        return {task.name: {} for task in tasks}
    cells: dict[str, NDArray[np.intp]] = {ALL_ROWS: np.arange(len(rows.weights))}
    cells |= cells_of(rows.scenarios, scenarios)[0]
    return {
        task.name: {
            label: reliability(rows.labels[members, k], rows.predictions[members, k], rows.weights_of(k, members))
            for label, all_members in cells.items()
            if len(members := rows.labelled(k, all_members))
        }
        for k, task in enumerate(tasks)
    }
