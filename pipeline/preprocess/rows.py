"""Decides which rows of a unit are kept, which are quarantined and why, which are filtered out or sampled out."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.config.logs import ScenarioConfig, TaskConfig
from pipeline.config.table_experiment import TableExperiment
from pipeline.features.values import INDISTINCT, as_ids, as_numbers, ids_of, indistinct, not_utf8
from pipeline.preprocess.sources import Sources
from pipeline.preprocess.targets import reference_faults, reference_reasons, target
from pipeline.preprocess.units import UnitRows
from pipeline.preprocess.weights import too_large, weight_columns, weights_in

LABEL_MISSING = "label is missing"
_KEPT, _FILTERED, _UNLABELLED, _SAMPLED_OUT = 0, -1, -2, -3


@dataclass
class Verdict:
    """The decision about each row. A row with several faults has only the first reason."""

    codes: NDArray[np.int16]  # (rows,) 0 kept, negative left out, n quarantined for reasons[n - 1]
    reasons: list[str] = field(default_factory=list)

    def reject(self, wrong: NDArray[np.bool_], reason: str) -> None:
        """Quarantines the rows where `wrong` is set."""
        new = wrong & (self.codes == _KEPT)
        if new.any():
            self.reasons.append(reason)
            self.codes[new] = len(self.reasons)

    def filter(self, unwanted: NDArray[np.bool_]) -> None:
        self.codes[unwanted & (self.codes == _KEPT)] = _FILTERED

    def filter_unlabelled(self, unlabelled: NDArray[np.bool_]) -> None:
        self.codes[unlabelled & (self.codes == _KEPT)] = _UNLABELLED

    def sample_out(self, dropped: NDArray[np.int64]) -> None:
        """Leaves out kept rows, by row number."""
        self.codes[dropped] = _SAMPLED_OUT

    @property
    def kept(self) -> NDArray[np.int64]:
        """Row numbers of the usable rows."""
        return np.flatnonzero(self.codes == _KEPT)

    @property
    def quarantined(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.codes > 0)

    @property
    def filtered_rows(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.codes == _FILTERED)

    @property
    def filtered(self) -> int:
        """Number of rows that are filtered out, the unlabelled ones included."""
        return int(np.count_nonzero(self.codes == _FILTERED)) + self.unlabelled

    @property
    def unlabelled(self) -> int:
        return int(np.count_nonzero(self.codes == _UNLABELLED))

    @property
    def sampled_out(self) -> int:
        return int(np.count_nonzero(self.codes == _SAMPLED_OUT))

    def counts(self) -> dict[str, int]:
        """Reason -> rows, the most frequent first."""
        counts = np.bincount(self.codes[self.quarantined], minlength=len(self.reasons) + 1)[1:].tolist()
        return dict(sorted(zip(self.reasons, counts, strict=True), key=lambda item: (-item[1], item[0])))


def judge(sections: TableExperiment, sources: Sources, rows: UnitRows) -> Verdict:
    """Decides about every row of a unit: labels and weights, keys, scenarios, features, each in the experiment's order.

    A row of the train split that has no label of any task is filtered out. In other splits it is kept: it has
    predictions.
    """
    verdict = Verdict(np.zeros(rows.count, dtype=np.int16))
    has_label = [rows_with_label(sections, task, sources, rows) for task in sections.tasks]
    for task, labelled in zip(sections.tasks, has_label, strict=True):
        _judge_label(verdict, task, rows, labelled)
        if task.sample_weight is not None:
            _judge_weight(verdict, f"task {task.name}: weight", task.sample_weight, rows, labelled)
    if (weight := sections.logs.weight) is not None:
        _judge_weight(verdict, f"weight {weight}: value", weight, rows, np.ones(rows.count, dtype=bool))
    for task, labelled in zip(sections.tasks, has_label, strict=True) if weight_columns(sections) else []:
        large = too_large(sections, task, rows, labelled)
        verdict.reject(large, f"task {task.name}: weight is too large for float32")
    for key in sections.logs.keys:
        column = rows.column(key)
        # NaN counts as missing, as in ids and labels that are floats.
        missing = column.values.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)
        verdict.reject(missing[column.rows], f"key {key}: value is missing")
        verdict.reject(not_utf8(column.values)[column.rows], f"key {key}: text is not UTF-8")
    for scenario in sections.scenarios:
        column = rows.column(scenario.column)
        verdict.reject(indistinct(column.values)[column.rows], f"scenario {scenario.name}: {INDISTINCT}")
        codes = scenario_codes(scenario, sources, rows)
        verdict.reject(codes == _NO_SCENARIO, f"scenario {scenario.name}: value is missing or not a whole number")
    for feature in sections.features:
        if feature.is_judged(sources.fractional):
            for wrong, reason in feature.faults(rows):
                verdict.reject(wrong, f"feature {feature.name}: {reason}")
    for scenario in sections.scenarios:
        if scenario.other == "drop":
            verdict.filter(scenario_codes(scenario, sources, rows) == len(scenario.values))
    if rows.split == "train":
        verdict.filter_unlabelled(~np.logical_or.reduce(has_label))
    return verdict


_NO_SCENARIO = -1


def scenario_codes(scenario: ScenarioConfig, sources: Sources, rows: UnitRows) -> NDArray[np.int32]:
    """Scenario index of each row: index of the value in `values`; len(values) for other values; -1 for no value."""
    column = rows.column(scenario.column)
    kind = sources.kinds[scenario.column]
    ids, _ = as_ids(column.values, kind)
    codes = pc.index_in(ids, value_set=ids_of(scenario.values, kind)).fill_null(len(scenario.values))
    return np.where(_nulls(ids), _NO_SCENARIO, codes.to_numpy()).astype(np.int32)[column.rows]


def rows_with_label(sections: TableExperiment, task: TaskConfig, sources: Sources, rows: UnitRows) -> NDArray[np.bool_]:
    """Which rows have a label of a task. All other rows are left to the other tasks. Found once per unit and task."""
    if task.name not in rows.with_label:
        found = _find_rows_with_label(sections, task, sources, rows)
        found.setflags(write=False)  # several callers share it
        rows.with_label[task.name] = found
    return rows.with_label[task.name]


def _find_rows_with_label(
    sections: TableExperiment, task: TaskConfig, sources: Sources, rows: UnitRows
) -> NDArray[np.bool_]:
    has_label = np.ones(rows.count, dtype=bool)
    for level, values in task.only.items():
        scenario = next(scenario for scenario in sections.scenarios if scenario.name == level)
        wanted = [scenario.labels.index(scenario.label_of(value)) for value in values]
        has_label &= np.isin(scenario_codes(scenario, sources, rows), wanted)
    if task.missing == "skip":
        numbers, value_of = target(task, rows)
        has_label &= ~np.isnan(numbers)[value_of]
    return has_label


def labels(sections: TableExperiment, task: TaskConfig, sources: Sources, rows: UnitRows) -> NDArray[np.float32]:
    """The label of each row on the training scale; NaN for a row without a label."""
    numbers, value_of = target(task, rows)
    values = task.to_training_scale(numbers)[value_of]
    if not task.may_lack_labels:
        return values
    return np.where(rows_with_label(sections, task, sources, rows), values, np.float32("nan"))


def labels_above_max(
    sections: TableExperiment, task: TaskConfig, sources: Sources, rows: UnitRows, kept: NDArray[np.int64]
) -> int:
    """How many of some rows have a label that `max` clips."""
    if task.max is None:
        return 0
    numbers, value_of = target(task, rows)
    above = (numbers > task.max)[value_of] & rows_with_label(sections, task, sources, rows)
    return int(np.count_nonzero(above[kept]))


def reasons_of_skip(task: TaskConfig) -> set[str]:
    """Reasons for the quarantine that a task does not have with `missing: skip`."""
    return {f"task {task.name}: {reason}" for reason in (LABEL_MISSING, *reference_reasons(task))}


def _judge_label(verdict: Verdict, task: TaskConfig, rows: UnitRows, has_label: NDArray[np.bool_]) -> None:
    column = rows.column(task.column)
    numbers = as_numbers(column.values)
    source = f"task {task.name}"

    def reject(wrong: NDArray[Any], reason: str) -> None:
        verdict.reject(wrong[column.rows] & has_label, f"{source}: {reason}")

    reject(np.isnan(numbers), LABEL_MISSING)
    reject(np.isinf(numbers), "label is infinite")
    if task.kind == "binary":
        reject((numbers != 0) & (numbers != 1), "label is neither 0 nor 1")
        return
    for fault, faulty in reference_faults(task, rows).items():
        verdict.reject(faulty & has_label, f"{source}: {fault}")
    if task.transform == "log1p":
        reject(numbers < 0, "label is negative, where log1p expects 0 or more")
    targets, value_of = target(task, rows)
    too_large = ~np.isfinite(task.to_training_scale(targets))
    verdict.reject(too_large[value_of] & has_label, f"{source}: label is too large for float32")


def _judge_weight(verdict: Verdict, source: str, column: str, rows: UnitRows, needed: NDArray[np.bool_]) -> None:
    weights = weights_in(column, rows)
    verdict.reject(np.isnan(weights) & needed, f"{source} is missing")
    verdict.reject(np.isinf(weights) & needed, f"{source} is infinite")
    verdict.reject((weights < 0) & needed, f"{source} is negative")


def _nulls(values: pa.Array) -> NDArray[np.bool_]:
    return values.is_null().to_numpy(zero_copy_only=False)
