"""The weights in the log: of each row, and of each row for one task."""

import numpy as np
from numpy.typing import NDArray

from pipeline.config.logs import TaskConfig
from pipeline.config.table_experiment import TableExperiment
from pipeline.features.values import as_numbers
from pipeline.preprocess.units import UnitRows


def weight_columns(sections: TableExperiment) -> set[str]:
    named = [sections.logs.weight, *(task.sample_weight for task in sections.tasks)]
    return {column for column in named if column is not None}


def weights_in(column: str, rows: UnitRows) -> NDArray[np.float64]:
    """A column of weights, ``(rows,)``, unchecked; NaN for null."""
    values = rows.column(column)
    return as_numbers(values.values)[values.rows]


def task_weights(
    sections: TableExperiment, task: TaskConfig, rows: UnitRows, has_label: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The product of the weight of each row and its weight for one task, ``(rows,)``.

    A weight that cannot be used counts as 0: such rows are not kept.

    Args:
        has_label: which rows have a label of the task; in the others, its own weight counts as 1.
    """
    product = np.ones(rows.count)
    factors = [] if sections.logs.weight is None else [weights_in(sections.logs.weight, rows)]
    if task.sample_weight is not None:
        factors.append(np.where(has_label, weights_in(task.sample_weight, rows), 1))
    for factor in factors:
        with np.errstate(over="ignore"):  # checked by `judge`
            product *= np.where(np.isfinite(factor) & (factor >= 0), factor, 0)
    return product


def too_large(
    sections: TableExperiment, task: TaskConfig, rows: UnitRows, has_label: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which rows have a weight for a task that is too large for float32, if they are kept negatives, ``(rows,)``."""
    negatives = sections.logs.negatives
    with np.errstate(over="ignore"):
        largest = task_weights(sections, task, rows, has_label) / (1.0 if negatives is None else negatives.keep)
    return largest > np.finfo(np.float32).max
