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


def task_weights(sections: TableExperiment, task: TaskConfig, rows: UnitRows) -> NDArray[np.float64]:
    """The product of the weight of each row and its weight for one task, ``(rows,)``.

    A weight that cannot be used counts as 0: such rows are not kept, or they have no label of this task.
    """
    product = np.ones(rows.count)
    for column in (sections.logs.weight, task.sample_weight):
        if column is not None:
            weights = weights_in(column, rows)
            with np.errstate(over="ignore"):  # checked by `judge`
                product *= np.where(np.isfinite(weights) & (weights >= 0), weights, 0)
    return product


def largest_weights(sections: TableExperiment, task: TaskConfig, rows: UnitRows) -> NDArray[np.float64]:
    """The weight that each row has for a task if it is a kept negative, ``(rows,)``."""
    negatives = sections.logs.negatives
    with np.errstate(over="ignore"):
        return task_weights(sections, task, rows) / (1.0 if negatives is None else negatives.keep)
