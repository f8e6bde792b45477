"""Decides which rows of a unit are kept, which are quarantined and why, and which are filtered out."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.config.logs import ScenarioConfig, TaskConfig
from pipeline.config.table_experiment import TableExperiment
from pipeline.features.values import as_ids, as_numbers, ids_of, not_utf8
from pipeline.preprocess.sources import Sources
from pipeline.preprocess.units import UnitRows

_KEPT, _FILTERED = 0, -1


@dataclass
class Verdict:
    """The decision about each row. A row with several faults has only the first reason."""

    codes: NDArray[np.int16]  # (rows,) 0 kept, -1 filtered, n quarantined for reasons[n - 1]
    reasons: list[str] = field(default_factory=list)

    def reject(self, wrong: NDArray[np.bool_], reason: str) -> None:
        """Quarantines the rows where `wrong` is set."""
        new = wrong & (self.codes == _KEPT)
        if new.any():
            self.reasons.append(reason)
            self.codes[new] = len(self.reasons)

    def filter(self, unwanted: NDArray[np.bool_]) -> None:
        self.codes[unwanted & (self.codes == _KEPT)] = _FILTERED

    @property
    def kept(self) -> NDArray[np.int64]:
        """Row numbers of the usable rows."""
        return np.flatnonzero(self.codes == _KEPT)

    @property
    def quarantined(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.codes > 0)

    @property
    def filtered(self) -> int:
        return int(np.count_nonzero(self.codes == _FILTERED))

    def counts(self) -> dict[str, int]:
        """Reason -> rows, the most frequent first."""
        counts = np.bincount(self.codes[self.quarantined], minlength=len(self.reasons) + 1)[1:].tolist()
        return dict(sorted(zip(self.reasons, counts, strict=True), key=lambda item: (-item[1], item[0])))


def judge(sections: TableExperiment, sources: Sources, rows: UnitRows) -> Verdict:
    """Decides about every row of a unit: labels, keys, scenarios, then features, each in the experiment's order."""
    verdict = Verdict(np.zeros(rows.count, dtype=np.int16))
    for task in sections.tasks:
        _judge_label(verdict, task, rows)
    for key in sections.logs.keys:
        column = rows.column(key)
        # NaN counts as missing, as in ids and labels that are floats.
        missing = column.values.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)
        verdict.reject(missing[column.rows], f"key {key}: value is missing")
        verdict.reject(not_utf8(column.values)[column.rows], f"key {key}: text is not UTF-8")
    for scenario in sections.scenarios:
        codes = scenario_codes(scenario, sources, rows)
        verdict.reject(codes == _NO_SCENARIO, f"scenario {scenario.name}: value is missing or not a whole number")
    for feature in sections.features:
        if feature.is_judged(sources.fractional):
            for wrong, reason in feature.faults(rows):
                verdict.reject(wrong, f"feature {feature.name}: {reason}")
    for scenario in sections.scenarios:
        if scenario.other == "drop":
            verdict.filter(scenario_codes(scenario, sources, rows) == len(scenario.values))
    return verdict


_NO_SCENARIO = -1


def scenario_codes(scenario: ScenarioConfig, sources: Sources, rows: UnitRows) -> NDArray[np.int32]:
    """Scenario index of each row: index of the value in `values`; len(values) for other values; -1 for no value."""
    column = rows.column(scenario.column)
    kind = sources.kinds[scenario.column]
    ids, _ = as_ids(column.values, kind)
    codes = pc.index_in(ids, value_set=ids_of(scenario.values, kind)).fill_null(len(scenario.values))
    return np.where(_nulls(ids), _NO_SCENARIO, codes.to_numpy()).astype(np.int32)[column.rows]


def _judge_label(verdict: Verdict, task: TaskConfig, rows: UnitRows) -> None:
    column = rows.column(task.column)
    numbers = as_numbers(column.values)
    source = f"task {task.name}"

    def reject(wrong: NDArray[Any], reason: str) -> None:
        verdict.reject(wrong[column.rows], f"{source}: {reason}")

    reject(np.isnan(numbers), "label is missing")
    reject(np.isinf(numbers), "label is infinite")
    if task.kind == "binary":
        reject((numbers != 0) & (numbers != 1), "label is neither 0 nor 1")
        return
    if task.transform == "log1p":
        reject(numbers < 0, "label is negative, where log1p expects 0 or more")
    reject(~np.isfinite(task.to_training_scale(numbers)), "label is too large for float32")


def _nulls(values: pa.Array) -> NDArray[np.bool_]:
    return values.is_null().to_numpy(zero_copy_only=False)
