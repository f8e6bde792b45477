"""Counts what the kept rows of a unit contain."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.config.logs import ScenarioConfig, TaskConfig
from pipeline.features.values import as_ids, count_values, ids_of, printable
from pipeline.preprocess.preprocess_plan import PreprocessPlan
from pipeline.preprocess.rows import Verdict, labels, labels_above_max
from pipeline.preprocess.units import UnitRows
from pipeline.table.content import OTHER, AfterCounts, Content, LabelSums, LevelContent, TaskContent, most_frequent
from pipeline.table.manifest import LABEL, REFERENCE, SCENARIO, WEIGHT

_UNIT_VALUES = 200  # counted per unit, so that the most frequent values of a partition are known
_LONGEST = 60  # characters of a value that is only shown


def count_content(plan: PreprocessPlan, rows: UnitRows, verdict: Verdict, table: pa.Table) -> Content:
    """The content of a unit.

    Args:
        verdict: of the unit's rows.
        table: columns of lane files of the kept rows, in any order.
    """
    kept, levels, tasks = verdict.kept, plan.sections.scenarios, plan.sections.tasks
    clipped = {task.name: labels_above_max(plan.sections, task, plan.sources, rows, kept) for task in tasks}
    return Content(
        {level.name: _count_level(plan, level, rows, verdict, table) for level in levels},
        {
            task.name: count_labels(task, table, _labels(plan, task, rows, kept, table), clipped[task.name])
            for task in tasks
        },
        [int(np.count_nonzero(rows.has_match(i)[kept])) for i in range(len(plan.sides))],
    )


def _count_level(
    plan: PreprocessPlan, level: ScenarioConfig, rows: UnitRows, verdict: Verdict, table: pa.Table
) -> LevelContent:
    names = [str(value) for value in level.values] + ([OTHER] if level.other == "keep" else [])
    counts = np.bincount(table[SCENARIO + level.name].to_numpy(), minlength=len(names)).tolist()
    listed = {name: count for name, count in zip(names, counts, strict=True) if count}
    if level.other == "keep" and OTHER not in listed:
        return LevelContent(listed)
    used = verdict.kept if level.other == "keep" else verdict.filtered_rows
    unlisted, rest = most_frequent(_unlisted(plan, level, rows, used), _UNIT_VALUES)
    return LevelContent(listed, unlisted, rest)


def _unlisted(plan: PreprocessPlan, level: ScenarioConfig, rows: UnitRows, used: NDArray[np.int64]) -> dict[str, int]:
    """Rows of each value that the experiment does not list."""
    column, kind = rows.column(level.column), plan.sources.kinds[level.column]
    ids, _ = as_ids(column.values, kind)
    listed = pc.is_in(ids, value_set=ids_of(level.values, kind)).to_numpy(zero_copy_only=False)
    counted = count_values([ids.filter(pa.array(~listed))], [column.counts(used)[~listed]])
    values = counted["value"].combine_chunks()
    if pa.types.is_uint64(column.values.type):
        values = values.view(pa.uint64())
    found: dict[str, int] = {}
    for value, count in zip(values, counted["count"].to_pylist(), strict=True):
        text = _shown(value)
        found[text] = found.get(text, 0) + count
    return found


def _shown(value: pa.Scalar) -> str:
    text = printable(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _labels(
    plan: PreprocessPlan, task: TaskConfig, rows: UnitRows, kept: NDArray[np.int64], table: pa.Table
) -> NDArray[np.float64]:
    """The labels of kept rows in the unit of the log, NaN where there is none."""
    if task.quantiles_within is not None:  # a quantile hardly comes back as the same label
        return labels(plan.sections, task, plan.sources, rows)[kept].astype(np.float64)
    with np.errstate(over="ignore"):
        values = task.to_log_unit(table[LABEL + task.name].to_numpy()).astype(np.float64)
        return values if task.relative_to is None else values * table[REFERENCE + task.name].to_numpy()


def count_labels(task: TaskConfig, table: pa.Table, found: NDArray[np.float64], clipped: int) -> TaskContent:
    """The labels of one task.

    Args:
        task: the task.
        table: columns of lane files.
        found: the labels in the unit of the log, NaN where there is none, in any order.
        clipped: labels above `max`.
    """
    values, trained = found[~np.isnan(found)], table[LABEL + task.name].to_numpy()
    weights, is_known = np.ones(len(trained)), ~np.isnan(trained)
    if WEIGHT + task.name in table.column_names:
        weights = table[WEIGHT + task.name].to_numpy().astype(np.float64)
    with np.errstate(over="ignore"):
        total = float(values.sum())
    after = {}
    if task.after is not None:
        after[task.after] = _count_after(trained, weights, table[LABEL + task.after].to_numpy())
    return TaskContent(
        labels=len(values),
        zeros=int(np.count_nonzero(values == 0)),
        negative=int(np.count_nonzero(values < 0)),
        sum=total,
        lowest=float(values.min()) if len(values) else None,
        highest=float(values.max()) if len(values) else None,
        weightless=int(np.count_nonzero(weights[is_known] == 0)),
        sums=_sums(trained[is_known].astype(np.float64), weights[is_known]),
        after=after,
        clipped=clipped,
    )


def _sums(labels: NDArray[np.float64], weights: NDArray[np.float64]) -> LabelSums:
    is_positive = labels > 0
    logs, of_positive = np.log(labels[is_positive]), weights[is_positive]
    return LabelSums(
        rows=len(labels),
        weight=float(weights.sum()),
        positive=float(of_positive.sum()),
        sum=float(weights @ labels),
        squares=float(weights @ labels**2),
        log_sum=float(of_positive @ logs),
        log_squares=float(of_positive @ logs**2),
    )


def _count_after(labels: NDArray[np.float32], weights: NDArray[np.float64], others: NDArray[np.float32]) -> AfterCounts:
    happened = ~np.isnan(labels) & (others == 1)
    return AfterCounts(
        rows=int(np.count_nonzero(happened)),
        weight=float(weights[happened].sum()),
        positive=float(weights[happened & (labels > 0)].sum()),
        contradictions=int(np.count_nonzero((labels > 0) & (others == 0))),
    )
