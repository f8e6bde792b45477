"""Columns that some files or partitions of the log lack: an error, or null with `logs.missing_columns: null`."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.preprocess import commit, fit
from pipeline.report.folders import describe_table
from pipeline.table.manifest import read_manifest
from tests.old_runs.copies import one_after_the_other
from tests.preprocess.logs import digests, read_split
from tests.preprocess.test_labels_and_weights import CLICK, SPENT, USER, make

ITEM: dict[str, Any] = {"name": "item", "column": "item", "kind": "categorical", "ids": {"vocabulary": {}}, "dim": 2}
SEEN: dict[str, Any] = {"name": "seen", "column": "seen", "kind": "sequence", "shares": "user", "max_length": 2}
WORDS = {"name": "words", "column": "words", "kind": "multivalued", "separator": ",", "ids": {"hash": 9}, "dim": 2}
PRICE = {"name": "price", "column": "price", "kind": "numeric", "encode": {"standardize": "identity"}}
RATE = {"name": "rate", "column": "rate", "kind": "numeric", "encode": {"quantiles": 2}, "dim": 2}
OS: dict[str, Any] = {"name": "os", "column": "device.os", "kind": "categorical", "ids": {"vocabulary": {}}, "dim": 2}
BRAND = {"name": "brand", "column": "brand", "kind": "categorical", "ids": {"vocabulary": {}}, "dim": 2}
FEATURES: list[dict[str, Any]] = [USER, ITEM, SEEN, WORDS, PRICE, RATE, OS, BRAND]
FILL = {"missing_columns": None}
ROWS = 4
COLUMNS: dict[str, Any] = {
    "row": list(range(ROWS)),
    "user": [1, 2, 3, 1],
    "item": ["a", "b", "a", "c"],
    "seen": [[1], [2, 3], [], [1, 1, 2]],
    "words": ["x,y", "y", "", "z"],
    "price": [1.0, 2.0, 3.0, 4.0],
    "rate": [1, 2, 3, 4],
    "device": [{"os": "p"}, {"os": "q"}, {"os": "p"}, {"os": "q"}],
    "tab": [0, 1, 0, 1],
    "click": [0, 1, 0, 1],
    "spent": [0.5, 1.0, 2.0, 0.0],
    "importance": [1.0, 2.0, 1.0, 2.0],
}
USED = [name for name in COLUMNS if name != "device"] + ["device.os"]
QUARANTINED = {"row", "tab", "click", "importance"}  # a null in these columns makes a row unusable


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for stage in (fit, commit):
        monkeypatch.setattr(stage, "run_tasks", one_after_the_other)
    pq.write_table(pa.table({"item": ["a", "b"], "brand": ["A", "B"]}), tmp_path / "side.parquet")
    for day in (1, 2):
        write(tmp_path, day)
    yield tmp_path


def write(folder: Path, day: int, file: str = "a", without: str | None = None) -> None:
    first = 100 * day + 10 * (ord(file) - ord("a"))
    columns = {**COLUMNS, "row": [first + row for row in range(ROWS)]}
    if without == "device.os":
        columns["device"] = [{"screen": 5}] * ROWS
    elif without is not None:
        del columns[without]
    path = folder / f"log/day={day}/{file}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=2)


def run(folder: Path, into: str = "table", last: int = 2, **sections: Any) -> Any:
    joins = [{"path": str(folder / "side.parquet"), "key": "item"}]
    splits = {"train": [1, 1], "test": [2, last]}
    logs = {"joins": joins, "splits": splits, "weight": "importance", **sections.pop("logs", {})}
    return make(folder, into, logs=logs, **{"features": FEATURES, "tasks": [CLICK], **sections})


def table_without(path: Path) -> dict[str, str]:
    """The files of a table that decide its rows and encoders."""
    skipped = ("partitions/", "encoders/encoders.json", "manifest.json", "settings.json")  # they name files of the log
    return {name: digest for name, digest in digests(path).items() if not name.startswith(skipped)}


@pytest.mark.parametrize("day", [1, 2])
@pytest.mark.parametrize("column", [name for name in USED if name != "spent"])
def test_a_file_without_a_column_is_refused_or_has_nulls(
    folder: Path, column: str, day: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The advice of the message is followed: the other rows are those of a log without this file."""
    write(folder, day, "b", without=column)
    with pytest.raises(UserError, match=f"day={day}/b.parquet has no column '{column}'.*logs.missing_columns=null"):
        run(folder)
    assert not (folder / "table").exists()
    manifest = run(folder, logs=FILL)
    split = "train" if day == 1 else "test"
    odd, other = manifest.split(split)[0], manifest.split("test" if day == 1 else "train")[0]
    assert odd.missing_columns == {column: ROWS} and other.missing_columns == {}
    lost = ROWS if column in QUARANTINED else 0
    assert (odd.quarantined, odd.kept, odd.rows_read) == (lost, 2 * ROWS - lost, 2 * ROWS)
    warnings = [record.getMessage() for record in caplog.records if "missing_columns" in record.getMessage()]
    assert len(warnings) == 1 and f"'{column}' is null in {ROWS} rows, because 1 of the 3 files" in warnings[0]
    assert f"Column {column} is null in {ROWS} rows, whose files lack it" in describe_table(str(folder / "table"))
    assert read_manifest(str(folder / "table")) == manifest
    if lost:
        return
    rows = read_split(folder / "table", manifest, split).iloc[ROWS:]
    null: dict[str, Any] = {"user": 0, "item": 0, "price": 0.0, "rate": 0, "device.os": 0}
    name = "os" if column == "device.os" else column
    found = [list(value) for value in rows[name]] if column in ("seen", "words") else rows[name].tolist()
    assert found == [null.get(column, [])] * ROWS
    assert column != "item" or rows["brand"].tolist() == [0] * ROWS


def test_missing_columns_are_as_columns_of_nulls(folder: Path) -> None:
    """The tables of both logs have the same bytes."""
    write(folder, 1, "b", without="item")
    run(folder, "lacking", logs=FILL)
    path = folder / "log/day=1/b.parquet"
    table = pq.ParquetFile(path).read()
    pq.write_table(table.append_column("item", pa.nulls(ROWS, pa.string())), path, row_group_size=2)
    run(folder, "nulls")
    assert table_without(folder / "lacking") == table_without(folder / "nulls")


def test_a_log_that_lacks_nothing_is_the_same_with_the_key(folder: Path) -> None:
    run(folder, "fail")
    for value in (None, "null"):  # as YAML reads the word without and with quotes
        run(folder, f"null {value}", logs={"missing_columns": value})
        assert digests(folder / "fail") == digests(folder / f"null {value}")


def test_a_column_that_no_file_has_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="have a column 'itemm'|has a column 'itemm'") as caught:
        run(folder, features=[{**ITEM, "column": "itemm"}], logs=FILL)
    assert "'item'" in str(caught.value) and not (folder / "table").exists()


@pytest.mark.parametrize("column", [name for name in USED if name not in ("spent", *QUARANTINED)])
def test_a_later_day_may_lack_a_column(folder: Path, column: str) -> None:
    earlier = run(folder)
    write(folder, 3, without=column)
    with pytest.raises(UserError, match=f"'{column}'"):
        run(folder, last=3)
    manifest = run(folder, last=3, logs=FILL)
    assert manifest.partitions[:2] == earlier.partitions and manifest.fingerprint == earlier.fingerprint
    day = manifest.partitions[2]
    assert (day.kept, day.missing_columns) == (ROWS, {column: ROWS})
    write(folder, 4)
    assert run(folder, last=4, logs=FILL).partitions[3].missing_columns == {}


@pytest.mark.parametrize("column", sorted(QUARANTINED))
def test_a_later_day_without_a_needed_column_is_quarantined(folder: Path, column: str) -> None:
    run(folder)
    write(folder, 3, without=column)
    day = run(folder, last=3, logs=FILL).partitions[2]
    assert (day.kept, day.quarantined, day.missing_columns) == (0, ROWS, {column: ROWS})


def test_a_new_task_needs_no_column_in_old_days(folder: Path) -> None:
    """The key is set together with the task: the table grows, and its encoders stay."""
    for day in (1, 2):
        write(folder, day, without="spent")
    before = run(folder)
    write(folder, 3)
    tasks = [CLICK, {**SPENT, "missing": "skip"}]
    manifest = run(folder, last=3, tasks=tasks, logs=FILL)
    assert manifest.lineage == before.lineage
    assert [p.missing_columns for p in manifest.partitions] == [{"spent": ROWS}, {"spent": ROWS}, {}]
    assert [p.kept for p in manifest.partitions] == [ROWS] * 3
    assert read_split(folder / "table", manifest, "train")["label:spent"].isna().all()
    assert read_split(folder / "table", manifest, "test")["label:spent"].isna().tolist() == [True] * 4 + [False] * 4


def test_the_first_days_may_lack_a_feature(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A feature that only the test split has: its vocabulary is empty, and all of its values share one id."""
    write(folder, 1, without="item")
    with caplog.at_level(logging.WARNING):
        manifest = run(folder, logs=FILL)
    assert read_split(folder / "table", manifest, "train")["item"].tolist() == [0] * ROWS
    assert read_split(folder / "table", manifest, "test")["item"].tolist() == [1] * ROWS


def test_a_column_that_leaves_the_side_table_is_named_with_it(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not only the files of the log: they have never had it."""
    side = str(folder / "side.parquet")
    sections: dict[str, Any] = {"features": [USER, ITEM, BRAND], "tasks": [CLICK]}
    logs: dict[str, Any] = {
        **FILL,
        "joins": [{"path": side, "key": "item"}],
        "splits": {"train": [1, 1], "test": [2, 3]},
    }
    make(folder, logs=logs, **sections)
    pq.write_table(pa.table({"item": ["a", "b"]}), side)
    write(folder, 3)
    make(folder, logs=logs, **sections)
    assert "'brand' is null in 4 rows, because neither the 1 files to read, such as day=3/a.parquet, nor" in caplog.text
    assert f"nor the side tables ({side}) have it" in caplog.text


@pytest.mark.parametrize(
    "columns", [{}, {"user": pa.array([], pa.string())}, {"scene": pa.array([], pa.list_(pa.int8()))}]
)
def test_a_file_without_rows_may_have_any_columns(
    folder: Path, columns: dict[str, pa.Array], caplog: pytest.LogCaptureFixture
) -> None:
    sections: dict[str, Any] = {"features": [USER], "tasks": [CLICK]}
    alone = make(folder, "alone", **sections)
    pq.write_table(pa.table(columns), folder / "log/day=1/0.parquet")
    for logs in ({}, FILL):
        manifest = make(folder, f"table {len(logs)}", logs=logs, **sections)
        assert [p.kept for p in manifest.partitions] == [p.kept for p in alone.partitions]
        assert manifest.columns == alone.columns
    assert "is null in" not in caplog.text
