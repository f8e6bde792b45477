"""Labels that some rows do not have, and weights of rows, as the feature table has them."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.preprocess import rows
from pipeline.preprocess.job import preprocess
from pipeline.preprocess.run_table import summary
from pipeline.report.folders import describe_table
from pipeline.table.content_report import report_content
from pipeline.table.manifest import Manifest, Partition
from tests.preprocess.logs import experiment, read_split
from tests.preprocess.test_bad_logs import quarantined_rows

NAN, INF = float("nan"), float("inf")
USER: dict[str, Any] = {"name": "user", "column": "user", "kind": "categorical", "ids": {"vocabulary": {}}, "dim": 2}
TAB: dict[str, Any] = {"name": "tab", "column": "tab", "values": [0, 1]}
CLICK: dict[str, Any] = {"name": "click", "column": "click", "kind": "binary"}
SPENT: dict[str, Any] = {"name": "spent", "column": "spent", "kind": "continuous", "transform": "log1p", "scale": 2.0}
SPLITS = {"train": [1, 1], "test": [2, 2]}


pytestmark = pytest.mark.usefixtures("without_ray")


def write(folder: Path, day: int, columns: dict[str, Any], file: str = "a", group_rows: int = 1000) -> None:
    """Writes a log file; `user` and `tab` have a default, and `row` counts the rows."""
    rows = len(next(iter(columns.values())))
    table = {"row": range(100 * day, 100 * day + rows), "user": [1] * rows, "tab": [0] * rows, **columns}
    path = folder / f"log/day={day}/{file}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path, row_group_size=group_rows)


def make(folder: Path, into: str = "table", overwrite: bool = False, **sections: Any) -> Manifest:
    logs = {"joins": [], "splits": SPLITS, "max_quarantined": 1.0, **sections.pop("logs", {})}
    given = {"features": [USER], "scenarios": [TAB], "tasks": [CLICK], **sections}
    manifest = preprocess(experiment(folder, logs=logs, **given), str(folder / into), overwrite)
    for partition in manifest.partitions:
        left_out = partition.quarantined + partition.filtered + partition.sampled_out
        assert partition.rows_read == partition.kept + left_out
        assert sum(partition.reasons.values()) == partition.quarantined
        assert partition.unlabelled <= partition.filtered
    return manifest


def only_partition(manifest: Manifest, split: str = "train") -> Partition:
    (partition,) = manifest.split(split)
    return partition


def rows_of(folder: Path, manifest: Manifest, split: str = "train", table: str = "table") -> dict[int, dict[str, Any]]:
    """Label and weight columns of the kept rows, by key."""
    read = read_split(folder / table, manifest, split)
    wanted = [name for name in read.columns if name.startswith(("label:", "weight:"))]
    return {int(row["key:row"]): {name: row[name] for name in wanted} for row in read.to_dict("records")}


def check_rows(found: dict[int, dict[str, Any]], expected: dict[int, dict[str, Any]]) -> None:
    assert found.keys() == expected.keys()
    for row, values in expected.items():
        for name, value in values.items():
            np.testing.assert_array_equal(np.float32(found[row][name]), np.float32(value), err_msg=f"{row} {name}")


def test_a_row_without_a_label_of_one_task_is_left_to_the_others(tmp_path: Path) -> None:
    """Row 103 has no label at all: in the train split it is filtered out and counted, in the test split it is kept."""
    click, spent = [1, 0, None, None, 1], [None, 3.0, 0.5, NAN, INF]
    for day in (1, 2):
        write(tmp_path, day, {"click": pa.array(click, pa.int64()), "spent": pa.array(spent, pa.float64())})
    tasks = [{**CLICK, "missing": "skip"}, {**SPENT, "missing": "skip"}]
    manifest = make(tmp_path, tasks=tasks)
    expected = {
        0: {"label:click": 1, "label:spent": NAN},
        1: {"label:click": 0, "label:spent": math.log1p(6)},
        2: {"label:click": NAN, "label:spent": math.log1p(1)},
    }
    check_rows(rows_of(tmp_path, manifest), {100 + row: values for row, values in expected.items()})
    everything = {**expected, 3: {"label:click": NAN, "label:spent": NAN}}
    check_rows(rows_of(tmp_path, manifest, "test"), {200 + row: values for row, values in everything.items()})
    train, test = only_partition(manifest), only_partition(manifest, "test")
    assert (train.kept, train.quarantined, train.filtered, train.unlabelled) == (3, 1, 1, 1)
    assert (test.kept, test.quarantined, test.filtered, test.unlabelled) == (4, 1, 0, 0)
    assert train.reasons == {"task spent: label is infinite": 1} and quarantined_rows(tmp_path / "table", train) == [
        104
    ]
    assert not any(column.name.startswith("weight:") for column in manifest.columns)
    assert "train: 3 rows in 1 partitions (5 read, 1 quarantined, 1 filtered out (1 of them without a label))" in (
        summary(manifest, "t", 1)
    )
    described = describe_table(str(tmp_path / "table"))
    assert "1: 5 = 3 + 1 + 1 rows" in described and "1 filtered out because no task has a label" in described


def test_without_skipping_a_missing_label_is_quarantined_as_before(tmp_path: Path) -> None:
    for day in (1, 2):
        write(tmp_path, day, {"click": [1, 0, None], "spent": [1.0, None, 2.0]})
    train = only_partition(make(tmp_path, tasks=[{**CLICK, "missing": "skip"}, SPENT]))
    assert train.reasons == {"task spent: label is missing": 1} and train.kept == 2


def test_the_advice_about_too_many_missing_labels_can_be_followed(tmp_path: Path) -> None:
    for day in (1, 2):
        write(tmp_path, day, {"click": [1, 0, None], "spent": [1.0, None, 2.0]})
    with pytest.raises(UserError, match=r"set tasks.click.missing and tasks.spent.missing to `skip`: other tasks can"):
        make(tmp_path, tasks=[CLICK, SPENT], logs={"max_quarantined": 0.0})
    tasks = [{**task, "missing": "skip"} for task in (CLICK, SPENT)]
    manifest = make(tmp_path, tasks=tasks, logs={"max_quarantined": 0.0}, overwrite=True)
    assert only_partition(manifest).kept == 3


def test_a_column_of_nulls_only_has_no_labels(tmp_path: Path) -> None:
    for day in (1, 2):
        write(tmp_path, day, {"click": [1, 0], "spent": pa.nulls(2)})
    manifest = make(tmp_path, tasks=[CLICK, {**SPENT, "missing": "skip"}])
    assert all(math.isnan(row["label:spent"]) for row in rows_of(tmp_path, manifest).values())


def test_a_task_with_labels_only_after_another_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The purchase is unknown without a click; the advice, a 0 there, is followed."""
    caplog.set_level("INFO")
    buy = {"name": "buy", "column": "buy", "kind": "binary", "after": "click", "missing": "skip"}
    for table, without_click in (("unknown", None), ("known", 0)):
        for day in (1, 2):
            write(tmp_path, day, {"click": [1, 0, 1, 0], "buy": [1, without_click, None, without_click]})
        make(tmp_path, table, tasks=[CLICK, buy])
        message = "task buy: none of the 2 train rows in which click is 0 has a label of it"
        assert (message in caplog.text) == (table == "unknown")
        caplog.clear()


def test_a_task_exists_only_for_the_named_scenarios(tmp_path: Path) -> None:
    """Faults of the label, and of the task's weight, do not matter where the task does not exist."""
    level = {"name": "place", "column": "place", "values": ["top", "end"], "other": "keep"}
    columns = {
        "tab": [0, 0, 1, 1, 7, 7, 1],
        "place": ["top", "end", "top", "end", "top", "top", "end"],
        "click": [1, 0, 1, 0, 1, 0, 1],
        "spent": [2.0, -5.0, INF, None, 4.0, 0.0, -1.0],
        "w": [1.0, -1.0, NAN, INF, 2.0, None, 3.0],
    }
    for day in (1, 2):
        write(tmp_path, day, columns)
    spent = {**SPENT, "only": {"tab": [0, "other"], "place": ["top"]}, "sample_weight": "w"}
    manifest = make(tmp_path, tasks=[CLICK, spent], scenarios=[TAB, level])
    labels = [math.log1p(4), NAN, NAN, NAN, math.log1p(8), None, NAN]
    expected = {
        100 + i: {"label:click": columns["click"][i], "label:spent": label, "weight:click": 1}
        for i, label in enumerate(labels)
        if label is not None
    }
    found = rows_of(tmp_path, manifest)
    check_rows(found, expected)
    assert all(np.isfinite(row["weight:spent"]) and row["weight:spent"] >= 0 for row in found.values())
    assert [found[row]["weight:spent"] for row in (100, 104)] == [1, 2]
    assert only_partition(manifest).reasons == {"task spent: weight is missing": 1}


def test_the_rows_with_a_label_are_found_once_per_unit_and_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checks, sampling, weights and labels use them, and so does the task that comes after."""
    found = Counter[tuple[int, str]]()
    find = rows._find_rows_with_label

    def counted(sections: Any, task: Any, sources: Any, unit: Any) -> Any:
        found[id(unit.with_label), task.name] += 1
        kept.append(unit)  # so that no other unit gets the same id
        return find(sections, task, sources, unit)

    kept: list[Any] = []
    monkeypatch.setattr(rows, "_find_rows_with_label", counted)
    for day in (1, 2):
        write(tmp_path, day, {"click": [1, 0, 0, 1], "buy": [1, None, 0, 0], "w": [1.0, 2.0, 0.5, 1.0]})
    click = {**CLICK, "only": {"tab": [0]}}
    buy = {"name": "buy", "column": "buy", "kind": "binary", "after": "click", "missing": "skip"}
    make(tmp_path, tasks=[click, buy], logs={"negatives": {"task": "click", "keep": 0.5}, "weight": "w"})
    assert {task for _, task in found} == {"click", "buy"} and set(found.values()) == {1}


def test_weights_multiply_and_unusable_weights_are_quarantined(tmp_path: Path) -> None:
    columns = {
        "click": [1, 0, 1, 0, 1, 0, 1],
        "spent": [1.0] * 7,
        "w": [2.0, 0.0, 0.5, None, -0.5, INF, 1e30],
        "own": pa.array([3.0, 4.0, 0.0, 1.0, 1.0, 1.0, 1e30], pa.float32()),
    }
    for day in (1, 2):
        write(tmp_path, day, columns)
    manifest = make(tmp_path, logs={"weight": "w"}, tasks=[CLICK, {**SPENT, "sample_weight": "own"}])
    expected = {
        100: {"weight:click": 2, "weight:spent": 6},
        101: {"weight:click": 0, "weight:spent": 0},
        102: {"weight:click": 0.5, "weight:spent": 0},
    }
    check_rows(rows_of(tmp_path, manifest), expected)
    reasons = [f"weight w: value is {what}" for what in ("infinite", "missing", "negative")]
    assert only_partition(manifest).reasons == dict.fromkeys(
        ["task spent: weight is too large for float32", *reasons], 1
    )
    names = [column.name for column in manifest.columns]
    assert names == ["user", "label:click", "label:spent", "weight:click", "weight:spent", "scenario:tab", "key:row"]


@pytest.mark.parametrize("own", [1e39, 1e300, 1e-50, -1.0, NAN, None])
def test_the_weight_of_a_task_is_not_read_without_its_label(tmp_path: Path, own: float | None) -> None:
    for day in (1, 2):
        write(tmp_path, day, {"click": [1, 0], "spent": [None, 1.0], "own": pa.array([own, 2.0], pa.float64())})
    tasks = [CLICK, {**SPENT, "missing": "skip", "sample_weight": "own"}]
    manifest = make(tmp_path, tasks=tasks)
    assert only_partition(manifest).reasons == {}
    assert rows_of(tmp_path, manifest)[101]["weight:spent"] == 2


@pytest.mark.parametrize("weight", [0.0, 1e-50])
@pytest.mark.parametrize("days", [(1, 2), (2,)])
def test_a_split_without_any_weight_is_named(tmp_path: Path, days: tuple[int, ...], weight: float) -> None:
    """Also if float32 makes all weights 0: such a log would train nothing."""
    for day in (1, 2):
        write(tmp_path, day, {"click": [1, 0], "w": [weight if day in days else 1.0] * 2})
    manifest = make(tmp_path, logs={"weight": "w"})
    sections = experiment(tmp_path, features=[USER], scenarios=[TAB], tasks=[CLICK], logs={"joins": []})
    remarks = report_content(sections.table_experiment, manifest).remarks
    said = [line for line in remarks if "has the weight 0, so none counts" in line]
    assert [line.split(" has ")[0] for line in said] == [
        f"task click: every label of {split}" for split, day in (("train", 1), ("test", 2)) if day in days
    ]


def test_weights_may_come_from_a_side_table_and_be_integers_or_booleans(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user": [1, 2], "trust": [3, 0]}), tmp_path / "side.parquet")
    for day in (1, 2):
        write(tmp_path, day, {"click": [1, 0, 1], "user": [1, 2, 3], "kept": [True, True, False]})
    logs = {"joins": [{"path": str(tmp_path / "side.parquet"), "key": "user"}], "weight": "trust"}
    manifest = make(tmp_path, logs=logs, tasks=[{**CLICK, "sample_weight": "kept"}])
    check_rows(rows_of(tmp_path, manifest), {100: {"weight:click": 3}, 101: {"weight:click": 0}})
    assert only_partition(manifest).reasons == {"weight trust: value is missing": 1}


def test_a_weight_of_text_and_a_weight_that_does_not_exist_are_refused(tmp_path: Path) -> None:
    for day in (1, 2):
        write(tmp_path, day, {"click": [1, 0], "w": ["1", "2"]})
    with pytest.raises(UserError, match=r"'w', which the weight of the rows \(logs.weight\) uses, is string .*integer"):
        make(tmp_path, logs={"weight": "w"})
    with pytest.raises(UserError, match=r"'ww', which the weight of task 'click' \(tasks.0.sample_weight\) uses.*'w'"):
        make(tmp_path, tasks=[{**CLICK, "sample_weight": "ww"}])


def test_a_new_task_needs_no_labels_in_old_days(tmp_path: Path) -> None:
    """The encoders stay; the partitions are those of a table that had the task, and its weights, from the start."""
    old, new = {"click": [1, 0], "spent": pa.nulls(2), "own": pa.nulls(2)}, {"click": [0, 1], "spent": [1.0, 0.0]}
    write(tmp_path, 1, old)
    write(tmp_path, 2, {**new, "own": [2.0, 3.0]})
    logs = {"splits": {"train": [1, 2]}}
    before = make(tmp_path, logs=logs)
    tasks = [CLICK, {**SPENT, "missing": "skip", "sample_weight": "own"}]
    manifest = make(tmp_path, logs=logs, tasks=tasks)
    expected = {
        100: {"label:click": 1, "label:spent": NAN, "weight:click": 1},
        101: {"label:click": 0, "label:spent": NAN, "weight:click": 1},
        200: {"label:click": 0, "label:spent": math.log1p(2), "weight:click": 1, "weight:spent": 2},
        201: {"label:click": 1, "label:spent": 0, "weight:click": 1, "weight:spent": 3},
    }
    check_rows(rows_of(tmp_path, manifest), expected)
    assert manifest.lineage == before.lineage
    fresh = make(tmp_path, "fresh", logs=logs, tasks=tasks)
    assert fresh.partitions == manifest.partitions and fresh.columns == manifest.columns
