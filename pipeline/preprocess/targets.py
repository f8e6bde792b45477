"""Targets of continuous tasks that depend on another column: ratios to it, and quantiles within groups by it."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config.logs import TaskConfig
from pipeline.config.table_experiment import TableExperiment
from pipeline.features.group_quantiles import sample
from pipeline.features.values import Column, as_numbers, hash_values
from pipeline.preprocess.units import UnitRows


def reference_columns(sections: TableExperiment) -> set[str]:
    return {task.reference for task in sections.tasks if task.reference is not None}


def target(task: TaskConfig, rows: UnitRows) -> tuple[NDArray[np.float64], NDArray[np.integer]]:
    """The values of a task's target before `max` and what follows it: labels, or ratios. NaN where there is none.

    Returns:
        The values, and for every row the index of its value. Labels without a reference are one value per distinct
        label, see `Column`.
    """
    column = rows.column(task.column)
    numbers = as_numbers(column.values)
    reference = references(task, rows)
    if reference is None:
        return numbers, column.rows
    # The label is divided by what the table has of the column, so that the product is the label again.
    divisor = reference if task.relative_to is not None else np.where(np.isnan(reference), reference, np.float32(1))
    with np.errstate(over="ignore"):
        return numbers[column.rows] / divisor, np.arange(rows.count)


def references(task: TaskConfig, rows: UnitRows) -> NDArray[np.float32] | None:
    """The column that a target depends on, ``(rows,)``, NaN where it cannot be used; None if there is none."""
    if task.reference is None:
        return None
    column = rows.column(task.reference)
    values = _in_float32(column)
    return np.where(np.isfinite(values) & (values > 0), values, np.float32("nan"))[column.rows]


def reference_faults(task: TaskConfig, rows: UnitRows) -> dict[str, NDArray[np.bool_]]:
    """The rows with each fault of `reference_reasons`."""
    if task.reference is None:
        return {}
    column = rows.column(task.reference)
    numbers, stored = as_numbers(column.values), _in_float32(column)
    faults = [np.isnan(numbers), numbers <= 0, np.isinf(numbers), ~((stored > 0) & np.isfinite(stored))]
    return dict(zip(reference_reasons(task), (fault[column.rows] for fault in faults), strict=True))


def reference_reasons(task: TaskConfig) -> list[str]:
    """Why the column that a target depends on cannot be used."""
    if task.reference is None:
        return []
    faults = ("is missing", "is 0 or negative", "is infinite", "is outside float32")
    return [f"{task.reference} (its {task.reference_key}) {fault}" for fault in faults]


def target_sample(task: TaskConfig, rows: UnitRows, kept: NDArray[np.int64]) -> pa.Table:
    """The rows of a unit that the quantiles of a task are fitted on, see `GroupQuantiles`."""
    numbers, value_of = target(task, rows)
    reference = references(task, rows)
    assert reference is not None
    labels = task.to_training_scale(numbers)[value_of][kept]
    has_label = ~np.isnan(labels)
    start = hash_values(pa.array([rows.file]))[0]
    keys = hash_values(pa.array((hash_values(pa.array(kept + rows.first_row)) ^ start).view(np.int64)))
    return sample(keys[has_label], reference[kept][has_label], labels[has_label].astype(np.float64))


def _in_float32(column: Column) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return as_numbers(column.values).astype(np.float32)
