"""Quarantined rows and unreadable files."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.preprocess.job import preprocess
from pipeline.table.manifest import Manifest
from tests.preprocess.logs import LOG_SCHEMA, experiment, log_rows, read_split, write_file, write_log, write_side

pytestmark = pytest.mark.usefixtures("ray_is_up")

FAULTS: list[tuple[str, Any, str]] = [
    ("click", None, "task click: label is missing"),
    ("click", 2.0, "task click: label is neither 0 nor 1"),
    ("click", float("inf"), "task click: label is infinite"),
    ("spent", None, "task spent: label is missing"),
    ("spent", float("nan"), "task spent: label is missing"),
    ("spent", -0.5, "task spent: label is negative, where log1p expects 0 or more"),
    ("row", None, "key row: value is missing"),
    ("tab", None, "scenario tab: value is missing or not a whole number"),
    ("user", 2.5, "feature user: value is not a whole number"),
    ("price", float("inf"), "feature price: value is infinite"),
    ("price", -1.0, "feature log_price: value is -1 or less, outside log1p"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_log(tmp_path / "log", days=["20240101", "20240103", "20240104"], rows=60)
    write_side(tmp_path / "side.parquet")
    return tmp_path


def run(folder: Path, **logs: Any) -> Manifest:
    return preprocess(experiment(folder, logs=logs), str(folder / "table"))


def test_each_fault_has_its_reason_and_the_whole_row_is_quarantined(folder: Path) -> None:
    rows = log_rows(60, seed=99)
    rows["click"] = [float(value) for value in rows["click"]]
    for i, (column, value, _) in enumerate(FAULTS):
        rows[column][2 * i] = value
    rows["spent"][0] = None  # a second fault in the first row: only the first reason is recorded
    rows["row"][1] = -1
    schema = LOG_SCHEMA.set(LOG_SCHEMA.get_field_index("click"), pa.field("click", pa.float64()))
    write_file(folder / "log/day=20240102/part.parquet", rows, schema, group_rows=7)
    manifest = run(folder, max_quarantined=0.5)
    (partition,) = [p for p in manifest.partitions if p.value == "20240102"]
    assert partition.quarantined == len(FAULTS)
    assert partition.rows_read == 60 == partition.kept + len(FAULTS)
    assert partition.reasons == {reason: sum(r == reason for _, _, r in FAULTS) for _, _, reason in FAULTS}
    (file,) = (folder / "table/quarantine/day=20240102").iterdir()
    bad = pq.read_table(file, partitioning=None)
    assert bad["reason"].to_pylist() == [reason for _, _, reason in FAULTS]
    # The log already has a column `row`, so the row number gets a longer name.
    assert bad["quarantine_row"].to_pylist() == [2 * i for i in range(len(FAULTS))]
    assert set(bad["file"].to_pylist()) == {"day=20240102/part.parquet"}
    written = pq.read_table(folder / "log/day=20240102/part.parquet", partitioning=None)
    assert bad.column_names[: len(LOG_SCHEMA)] == written.column_names
    expected = written.take(pa.array(range(0, 2 * len(FAULTS), 2)))
    for column in written.column_names:  # compared as text, for which NaN equals NaN
        assert str(bad[column].to_pylist()) == str(expected[column].to_pylist())


def test_quarantined_rows_do_not_reach_the_encoders(folder: Path) -> None:
    rows = log_rows(60, seed=99)
    rows["user"][5], rows["click"][5] = 12345.0, None
    rows["brand_new"] = rows.pop("unused")
    schema = LOG_SCHEMA.set(LOG_SCHEMA.get_field_index("unused"), pa.field("brand_new", pa.string()))
    write_file(folder / "log/day=20240102/part.parquet", rows, schema)
    features = [{"name": "user", "column": "user", "kind": "categorical", "ids": {"vocabulary": {}}, "dim": 2}]
    preprocess(experiment(folder, logs={"max_quarantined": 0.5}, features=features), str(folder / "table"))
    values = pq.read_table(folder / "table/encoders/user.parquet")["value"].to_pylist()
    assert 12345 not in values and len(values) > 10


def test_other_scenarios_are_filtered_out_on_request(folder: Path) -> None:
    scenarios = [{"name": "tab", "column": "tab", "values": [2, 0], "other": "drop"}]
    manifest = preprocess(experiment(folder, scenarios=scenarios), str(folder / "table"))
    for partition in manifest.partitions:
        assert partition.filtered > 0 and partition.rows_read == partition.kept + partition.filtered
    assert set(read_split(folder / "table", manifest, "train")["scenario:tab"]) == {0, 1}


def test_too_many_bad_rows_fail_and_a_higher_limit_continues(folder: Path) -> None:
    rows = log_rows(40, seed=99)
    rows["spent"][3], rows["tab"][4], rows["tab"][5] = -1.0, None, None
    write_file(folder / "log/day=20240102/part.parquet", rows)
    with pytest.raises(
        UserError, match=r"3 of 40 rows of day=20240102 .*: scenario tab: .* \(2\); task spent: "
    ) as error:
        run(folder)
    quarantine = str(error.value).split("Look at them in ")[1].split(",")[0]
    assert len(list(Path(quarantine).glob("*.parquet"))) == 1
    assert not (folder / "table/manifest.json").exists()
    assert run(folder, max_quarantined=0.1).rows("train") == 120 + 37


def break_footer(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def break_data(path: Path) -> None:
    """Damages a page in the second half: the footer, the first row group and most columns stay readable."""
    data = bytearray(path.read_bytes())
    group = pq.read_metadata(path).row_group(1)
    start = group.column(0).data_page_offset
    data[start : start + 12] = b"\xff" * 12
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [break_footer, break_data])
def test_unreadable_files_are_refused_or_skipped(folder: Path, damage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.preprocess.units.UNIT_ROWS", 50)
    damage(folder / "log/day=20240101/part-1.parquet")
    damage(folder / "log/day=20240104/part-0.parquet")
    with pytest.raises(UserError, match=r"log/day=20240101/part-1.parquet cannot be read: .*unreadable_files=skip"):
        run(folder)
    manifest = preprocess(experiment(folder, logs={"unreadable_files": "skip"}), str(folder / "skipping"))
    skipped = {p.value: p.skipped_files for p in manifest.partitions if p.skipped_files}
    assert skipped == {"20240101": ["day=20240101/part-1.parquet"], "20240104": ["day=20240104/part-0.parquet"]}
    assert manifest.rows("train") == 60 and manifest.rows("test") == 60
    kept = {file.path for p in manifest.partitions for lane in p.lanes for file in lane}
    written = {str(path.relative_to(folder / "skipping")) for path in (folder / "skipping").glob("*/day=*/lane-*/*")}
    assert written == kept
    users = pq.read_table(folder / "skipping/encoders/flag.parquet")["count"].to_pylist()
    assert sum(users) <= 60  # the damaged file adds nothing to the encoders, not even its readable part
