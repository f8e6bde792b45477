"""Labels that some rows do not have, weights of rows, and down-sampling of negatives, as the feature table has them."""

import math
import tempfile
from collections import Counter
from collections.abc import Iterator
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.preprocess import commit, fit, rows, units
from pipeline.preprocess.job import preprocess
from pipeline.preprocess.run_table import summary
from pipeline.report.folders import describe_table
from pipeline.table.manifest import Manifest, Partition
from tests.old_runs.copies import one_after_the_other
from tests.preprocess.logs import experiment, read_split
from tests.preprocess.test_bad_logs import quarantined_rows

NAN, INF = float("nan"), float("inf")
USER: dict[str, Any] = {"name": "user", "column": "user", "kind": "categorical", "ids": {"vocabulary": {}}, "dim": 2}
TAB: dict[str, Any] = {"name": "tab", "column": "tab", "values": [0, 1]}
CLICK: dict[str, Any] = {"name": "click", "column": "click", "kind": "binary"}
SPENT: dict[str, Any] = {"name": "spent", "column": "spent", "kind": "continuous", "transform": "log1p", "scale": 2.0}
SPLITS = {"train": [1, 1], "test": [2, 2]}


@pytest.fixture(scope="module", autouse=True)
def without_ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for stage in (fit, commit):
            patch.setattr(stage, "run_tasks", one_after_the_other)
        yield


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


ROWS = 4000
KEEP = {"negatives": {"task": "click", "keep": 0.2}}


def write_clicks(folder: Path, day: int = 1, order: np.ndarray | None = None, **options: Any) -> pd.DataFrame:
    """Writes 4,000 rows, nine in ten without a click; the key identifies a row also in another order."""
    rng = np.random.default_rng(day)
    click = pd.array(np.where(rng.random(ROWS) < 0.1, 1, 0), "Int64")
    click[:40] = pd.NA
    frame = pd.DataFrame({"row": np.arange(ROWS) + 10_000 * day, "click": click, "spent": rng.integers(0, 5, ROWS)})
    shuffled = frame if order is None else frame.iloc[order]
    arrow = {name: pa.array(shuffled[name]) for name in ("row", "click", "spent")}
    write(folder, day, arrow, **options)
    return frame.set_index("row")


SAMPLED_TASKS = [{**CLICK, "missing": "skip"}, SPENT]


def test_negatives_of_the_train_split_are_sampled_and_weighted(tmp_path: Path) -> None:
    """All other rows are kept; the weights of the kept negatives add up to about the number of negatives."""
    log, test = write_clicks(tmp_path), write_clicks(tmp_path, 2)
    manifest = make(tmp_path, logs=KEEP, tasks=SAMPLED_TASKS)
    found = rows_of(tmp_path, manifest)
    negatives = int((log["click"] == 0).sum())
    dropped = set(log.index) - found.keys()
    assert (log.loc[sorted(dropped), "click"] == 0).all()
    assert only_partition(manifest).sampled_out == len(dropped)
    # 3,560 or so negatives: a share of 0.2 has the standard deviation 0.0067.
    assert abs((negatives - len(dropped)) / negatives - 0.2) < 4 * math.sqrt(0.2 * 0.8 / negatives)
    for values in found.values():
        weight = 5 if values["label:click"] == 0 else 1
        assert values["weight:click"] == values["weight:spent"] == weight
    everything = rows_of(tmp_path, manifest, "test")
    assert everything.keys() == set(test.index) and only_partition(manifest, "test").sampled_out == 0
    assert all(row["weight:click"] == 1 for row in everything.values())
    read, kept = f"{ROWS:,}", ROWS - len(dropped)
    assert f"train: {kept:,} rows in 1 partitions ({read} read, 0 quarantined, 0 filtered out, {len(dropped):,} sampled"
    described = describe_table(str(tmp_path / "table"))
    assert "Splits: rows read = kept + quarantined + filtered out + sampled out" in described
    assert f"1: {read} = {kept:,} + 0 + 0 + {len(dropped):,} rows" in described
    assert f"2: {read} = {read} + 0 + 0 + 0 rows" in described


def test_encoders_are_fitted_on_the_whole_log(tmp_path: Path) -> None:
    """Vocabularies and moments are those of the rows before sampling."""
    write_clicks(tmp_path)
    write_clicks(tmp_path, 2)
    spent = {"name": "amount", "column": "row", "kind": "numeric", "encode": {"standardize": "identity"}}
    ids = {**USER, "name": "id", "column": "row"}
    for table, logs in (("all", {}), ("sampled", KEEP)):
        make(tmp_path, table, logs=logs, tasks=SAMPLED_TASKS, features=[ids, spent])
    for name in ("id", "amount"):
        one, two = (pq.read_table(tmp_path / t / f"encoders/{name}.parquet") for t in ("all", "sampled"))
        assert one.equals(two)


def kept_keys(folder: Path, into: str, **sections: Any) -> set[int]:
    manifest = make(folder, into, logs=KEEP, tasks=SAMPLED_TASKS, **sections)
    return set(rows_of(folder, manifest, table=into))


def test_the_choice_depends_on_the_keys_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on the order of rows and files, their names, units, types of the key column, partitions, and runs."""
    first = tmp_path / "first"
    write_clicks(first)
    write_clicks(first, 2)
    kept = kept_keys(first, "table")
    assert kept == kept_keys(first, "again")
    assert kept != kept_keys(first, "seed", table={"seed": 1})
    moved = tmp_path / "moved"
    log = pq.read_table(first / "log/day=1/a.parquet", partitioning=None)
    parts = log.take(pa.array(np.random.default_rng(0).permutation(ROWS)))
    for name, type_, start in (("z", pa.float64(), 0), ("b", pa.uint64(), 1500), ("c", pa.int32(), 3000)):
        part = parts.slice(start, 1500)
        path = moved / f"log/day=1/{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(part.set_column(0, "row", part["row"].cast(type_)), path, row_group_size=100)
    write_clicks(moved, 2)
    monkeypatch.setattr(units, "UNIT_ROWS", 300)
    assert kept == kept_keys(moved, "table", table={"lanes": 2})


def test_the_choice_stays_the_same_in_later_versions(tmp_path: Path) -> None:
    """A table that is extended day after day, or rebuilt, keeps the same rows."""
    for day in (1, 2):
        write(tmp_path, day, {"row": range(40), "click": [0] * 40, "spent": [0] * 40})
    assert kept_keys(tmp_path, "table") == {14, 17, 26, 27}


def test_without_keys_the_choice_depends_on_file_and_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = write_clicks(tmp_path, group_rows=100)
    write_clicks(tmp_path, 2)
    label = {
        "features": [USER, {"name": "id", "column": "row", "kind": "numeric", "encode": {"standardize": "identity"}}]
    }

    def kept_rows(table: str) -> list[float]:
        manifest = make(tmp_path, table, logs={**KEEP, "keys": []}, tasks=SAMPLED_TASKS, **label)
        files = [file for partition in manifest.split("train") for lane in partition.lanes for file in lane]
        return sorted(v for f in files for v in pq.read_table(tmp_path / table / f.path)["id"].to_pylist())

    kept = kept_rows("table")
    monkeypatch.setattr(units, "UNIT_ROWS", 300)
    assert kept == kept_rows("units")
    assert 0.15 * ROWS < len(kept) < 0.45 * ROWS
    before = set(kept)
    (tmp_path / "log/day=1/a.parquet").rename(tmp_path / "log/day=1/b.parquet")
    assert before != set(kept_rows("renamed"))
    assert len(log) == ROWS


@pytest.mark.parametrize(
    "key",
    [
        pa.array([f"user {n}" for n in range(400)]),
        pa.array([f"user {n}" for n in range(400)]).dictionary_encode(),
        pa.array([n + 0.5 for n in range(400)]),
        pa.array([date.fromordinal(700_000 + n) for n in range(400)]),
        pa.array([datetime(2024, 1, 1, n // 60 % 24, n % 60, n // 1440) for n in range(400)]),
        pa.array([Decimal(n) / 100 for n in range(400)]),
        pa.array([n.to_bytes(4) for n in range(400)], pa.binary(4)),
        pa.array([[n, n + 1] for n in range(400)]),
        pa.array([2**63 + n for n in range(400)], pa.uint64()),
        pa.array([-n for n in range(400)], pa.int16()),
    ],
    ids=lambda key: str(key.type),
)
def test_keys_of_any_type_decide(tmp_path: Path, key: pa.Array) -> None:
    """About a fifth is kept, and the same keys are kept in another file and in another order."""
    for day in (1, 2):
        write(tmp_path, day, {"row": key, "click": [0] * 400})
    logs = {**KEEP, "splits": {"train": [1, 2]}, "keys": ["row"]}
    one, two = kept_by_day(tmp_path, make(tmp_path, logs=logs))
    assert one == two and 40 < len(one) < 130
    backwards = pa.array(range(399, -1, -1))
    write(tmp_path, 2, {"row": key.take(backwards), "click": [0] * 400})
    assert kept_by_day(tmp_path, make(tmp_path, overwrite=True, logs=logs)) == [one, one]


def kept_by_day(folder: Path, manifest: Manifest) -> list[set[str]]:
    found = []
    for partition in manifest.split("train"):
        read = [pq.read_table(folder / "table" / f.path) for lane in partition.lanes for f in lane]
        found.append({str(value) for part in read for value in part["key:row"].to_pylist()})
    return found


def test_rows_without_a_key_are_quarantined_and_not_sampled(tmp_path: Path) -> None:
    for day in (1, 2):
        rows = pa.array([None, 1, NAN, 3, 4, 5], pa.float64())
        write(tmp_path, day, {"row": rows, "click": [0, 1, 0, 1, 0, 0]})
    train = only_partition(make(tmp_path, logs={"negatives": {"task": "click", "keep": 1e-9}}))
    assert train.reasons == {"key row: value is missing": 2} and (train.kept, train.sampled_out) == (2, 2)


def test_two_keys_decide_together(tmp_path: Path) -> None:
    """Rows that share one key are not kept or dropped together; the order of the keys is part of the hash."""
    one, two = np.divmod(np.arange(2500), 50)
    for day in (1, 2):
        write(tmp_path, day, {"row": np.arange(2500), "one": one, "two": two, "click": [0] * 2500})
    kept = []
    for keys in (["one", "two"], ["two", "one"]):
        manifest = make(tmp_path, "-".join(keys), logs={**KEEP, "keys": ["row", *keys]})
        kept.append(set(rows_of(tmp_path, manifest, table="-".join(keys))))
    assert kept[0] != kept[1]
    shares = np.bincount([row // 50 for row in kept[0]], minlength=50) / 50
    assert shares.max() < 0.6 and abs(shares.mean() - 0.2) < 0.05


def test_keeping_all_negatives_changes_only_the_columns(tmp_path: Path) -> None:
    log = write_clicks(tmp_path)
    write_clicks(tmp_path, 2)
    manifest = make(tmp_path, logs={"negatives": {"task": "click", "keep": 1.0}}, tasks=SAMPLED_TASKS)
    found = rows_of(tmp_path, manifest)
    assert found.keys() == set(log.index) and all(row["weight:spent"] == 1 for row in found.values())


def test_a_split_of_which_sampling_keeps_nothing_is_refused(tmp_path: Path) -> None:
    for day in (1, 2):
        write(tmp_path, day, {"click": [0, 0]})
    with pytest.raises(UserError, match="train: no row is left of its 2 rows .*0 filtered out, 2 sampled out, 0 files"):
        make(tmp_path, logs={"negatives": {"task": "click", "keep": 1e-9}})


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
