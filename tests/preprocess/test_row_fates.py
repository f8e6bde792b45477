"""A property of all combinations of labels, weights and down-sampling: what becomes of each row."""

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.preprocess.test_labels_and_weights import (
    CLICK,
    INF,
    NAN,
    SPENT,
    TAB,
    check_rows,
    make,
    only_partition,
    rows_of,
    write,
)

pytestmark = pytest.mark.usefixtures("without_ray")


VALUES: dict[str, list[Any]] = {
    "tab": [0, 1, 1, 2, None],
    "click": [0.0, 0.0, 1.0, 1.0, None, NAN, 0.5, INF],
    "spent": [0.0, 0.5, 3.0, None, -1.0, INF],
    "w": [0.0, 0.5, 2.0, 2.0, 1.0, None, -1.0, INF],
    "own": [1.0, 0.25, 4.0, None, -2.0],
}
GOOD = {"tab": 1, "click": 1.0, "spent": 1.0, "w": 1.0, "own": 1.0}
ONLY = st.sampled_from([{}, {"tab": [1]}, {"tab": [0, 1]}, {"tab": [1, 0]}])


@st.composite
def experiments(draw: st.DrawFn) -> dict[str, Any]:
    """Sections that use the keys of labels and weights in any combination."""
    missing = st.sampled_from(["quarantine", "skip", "skip"])
    tasks = [{**task, "missing": draw(missing), "only": draw(ONLY)} for task in (CLICK, SPENT)]
    if draw(st.booleans()):
        tasks[1]["sample_weight"] = "own"
    logs: dict[str, Any] = {"weight": draw(st.sampled_from([None, "w"]))}
    if draw(st.booleans()):
        logs["negatives"] = {"task": "click", "keep": 0.5}
    return {"tasks": tasks, "logs": logs, "scenarios": [{**TAB, "other": draw(st.sampled_from(["keep", "drop"]))}]}


ROW = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in VALUES.items()})


def number(value: float | None) -> float:
    return NAN if value is None else value


def fault_of_weight(weight: float) -> str | None:
    if math.isnan(weight):
        return "missing"
    return "infinite" if math.isinf(weight) else "negative" if weight < 0 else None


def label_of(task: dict[str, Any], row: dict[str, Any]) -> float | None:
    """The value of the column; None if the row has no label of the task."""
    value = number(row[task["column"]])
    exists = not task["only"] or row["tab"] in task["only"]["tab"]
    return None if not exists or (math.isnan(value) and task["missing"] == "skip") else value


def expected_fate(sections: dict[str, Any], row: dict[str, Any], split: str) -> str:
    """The reason of quarantine, or "filtered", "unlabelled", "kept", "negative": kept unless it is sampled out."""
    tasks = sections["tasks"]
    for task in tasks:
        label = label_of(task, row)
        if label is None:
            continue
        faults = {"missing": math.isnan(label), "infinite": math.isinf(label)}
        faults["neither 0 nor 1"] = task["kind"] == "binary" and label not in (0, 1)
        faults["negative, where log1p expects 0 or more"] = task["kind"] == "continuous" and label < 0
        for fault, wrong in faults.items():
            if wrong:
                return f"task {task['name']}: label is {fault}"
        if "sample_weight" in task and (fault_of_own := fault_of_weight(number(row["own"]))):
            return f"task {task['name']}: weight is {fault_of_own}"
    if sections["logs"]["weight"] and (fault_of_row := fault_of_weight(number(row["w"]))):
        return f"weight w: value is {fault_of_row}"
    if row["tab"] is None:
        return "scenario tab: value is missing or not a whole number"
    if row["tab"] == 2 and sections["scenarios"][0]["other"] == "drop":
        return "filtered"
    if split == "train" and all(label_of(task, row) is None for task in tasks):
        return "unlabelled"
    return (
        "negative" if split == "train" and "negatives" in sections["logs"] and label_of(tasks[0], row) == 0 else "kept"
    )


def expected_columns(sections: dict[str, Any], row: dict[str, Any], is_negative: bool) -> dict[str, float]:
    logs, tasks = sections["logs"], sections["tasks"]
    columns = {}
    for task in tasks:
        label = label_of(task, row)
        scaled = label if label is None or task["kind"] == "binary" else math.log1p(2 * label)
        columns[f"label:{task['name']}"] = NAN if scaled is None else scaled
        if logs["weight"] or "negatives" in logs or "sample_weight" in tasks[1]:
            own = row["own"] if "sample_weight" in task else 1.0
            if label is not None:
                weight = (row["w"] if logs["weight"] else 1.0) * own * (2 if is_negative else 1)
                columns[f"weight:{task['name']}"] = weight
    return columns


@settings(derandomize=True, deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(experiments(), st.lists(ROW, min_size=1, max_size=25))
def test_each_row_is_accounted_for_and_its_labels_and_weights_are_those_of_the_log(
    sections: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, all_rows = Path(name), [GOOD, *rows]
        types = {"tab": pa.int64()}
        columns = {
            column: pa.array([row[column] for row in all_rows], types.get(column, pa.float64())) for column in GOOD
        }
        for day in (1, 2):
            write(folder, day, columns)
        manifest = make(folder, **sections)
        for split, first in (("train", 100), ("test", 200)):
            fates = {first + i: expected_fate(sections, row, split) for i, row in enumerate(all_rows)}
            partition, found = only_partition(manifest, split), rows_of(folder, manifest, split)
            for row, values in found.items():
                expected = expected_columns(sections, all_rows[row - first], fates[row] == "negative")
                check_rows({row: values}, {row: expected})
                assert all(np.isfinite(value) and value >= 0 for key, value in values.items() if key[0] == "w")
            kept, negatives = ({row for row, fate in fates.items() if fate == what} for what in ("kept", "negative"))
            assert kept <= found.keys() <= kept | negatives
            assert partition.sampled_out == len((kept | negatives) - found.keys())
            counts = list(fates.values())
            assert partition.unlabelled == counts.count("unlabelled")
            assert partition.filtered == counts.count("unlabelled") + counts.count("filtered")
            reasons = {fate for fate in counts if ": " in fate}
            assert partition.reasons == {reason: counts.count(reason) for reason in reasons}
