"""Partition folders: which are read, in which split, and what is reported of the others."""

import logging
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.load import dump_experiment
from pipeline.errors import UserError
from pipeline.preprocess.job import preprocess
from pipeline.preprocess.partitions import DiscoveredPartitions, find_partitions
from pipeline.report.folders import describe_table
from pipeline.table.manifest import Manifest
from pipeline.table.settings import check_table_is_of
from tests.commands import manygate
from tests.preprocess.logs import experiment, log_rows, read_split, write_file, write_side

NESTED = ["year", "month", "day"]


def find(log: Path, partition: Any, folders: list[str], **splits: list[Any]) -> DiscoveredPartitions:
    for folder in folders:
        (log / "log" / folder).mkdir(parents=True, exist_ok=True)
    return find_partitions(with_logs(log, partition, splits).logs)


def with_logs(folder: Path, partition: Any, splits: dict[str, list[Any]]) -> Any:
    return experiment(folder, logs={"partition": partition, "splits": splits})


def taken(found: DiscoveredPartitions) -> dict[str, str]:
    return {partition.value: partition.split for partition in found.partitions}


def test_holes_are_reported_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    days = [f"dt=2026-01-{day:02d}" for day in range(1, 9)]
    found = find(tmp_path, "dt", days, train=["2026-01-02", "2026-01-04"], test=["2026-1-6", "2026-1-7"])
    assert list(taken(found)) == [f"2026-01-{day:02d}" for day in (2, 3, 4, 6, 7)]
    assert found.ignored == ["2026-01-01", "2026-01-05", "2026-01-08"]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "before and after are: dt=2026-01-05. Change" in record.getMessage()


def test_partitions_without_a_value_are_in_no_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = find(tmp_path, "dt", ["dt=1", "dt=2", "dt=", "dt=__HIVE_DEFAULT_PARTITION__"], train=[1, 9])
    assert taken(found) == {"1": "train", "2": "train"}
    assert found.ignored == ["", "__HIVE_DEFAULT_PARTITION__"]
    assert "no value: dt=, dt=__HIVE_DEFAULT_PARTITION__. To use" in caplog.text


def test_folders_that_mean_the_same_are_all_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = find(tmp_path, "dt", ["dt=2026-01-09", "dt=20260109", "dt=2026-01-10"], train=["2026-01-01", "2026-01-10"])
    assert list(taken(found)) == ["2026-01-09", "20260109", "2026-01-10"]
    assert "dt=2026-01-09 and dt=20260109 mean the same value: all are read" in caplog.text


def test_the_hint_for_nested_folders_works(tmp_path: Path) -> None:
    folders = [f"year=2024/month=01/day={day:02d}" for day in (1, 2, 3)]
    with pytest.raises(UserError, match=r"no folders day=VALUE; it contains: year=2024\. .* \[year, month, day\]\."):
        find(tmp_path, "day", folders, train=[1, 2], test=[3, 3])
    found = find(tmp_path, NESTED, folders, train=["2024-1-1", "2024-01-02"], test=[[2024, 1, 3], [2024, 1, 3]])
    assert taken(found) == {"2024-01-01": "train", "2024-01-02": "train", "2024-01-03": "test"}
    with pytest.raises(UserError, match=r"set logs.partition to \[year, month, day\]\."):
        find(tmp_path, ["year", "day"], folders, train=["2024/1", "2024/2"])


def test_what_is_beside_nested_folders_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folders = ["year=2024/month=1/day=1", "year=2024/month=2", "year=2024/_temporary", "year=2024/month=1/day=2/hour=3"]
    (tmp_path / "log/year=2024").mkdir(parents=True)
    (tmp_path / "log/year=2024/part-0.parquet").write_text("")
    found = find(tmp_path, NESTED, folders, train=["2024-1-1", "2024-1-9"])
    assert taken(found) == {"2024-1-1": "train", "2024-1-2": "train"}
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "year=2024 is not read except its folders month=VALUE" in said[0] and said[0].endswith(
        " contains part-0.parquet."
    )
    assert "year=2024/month=2 is not read except its folders day=VALUE" in said[1] and said[1].endswith(
        " contains nothing."
    )


def test_the_range_that_a_message_shows_works(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no partition is between 7 and 9. The log has dt = 01, 2, 10: change"):
        find(tmp_path, "dt", ["dt=01", "dt=2", "dt=10"], train=[1, 5], test=[7, 9])
    assert taken(find(tmp_path, "dt", [], train=[1, 5], test=[10, 10])) == {"01": "train", "2": "train", "10": "test"}


@pytest.mark.parametrize(
    ("partition", "folders", "file"),
    [("dt", ["dt=1", "dt=2"], "dt=3"), (["year", "month"], ["year=1/month=1", "year=1/month=2"], "year=1/month=3")],
)
def test_a_file_that_is_called_like_a_partition_folder_is_named(
    partition: Any, folders: list[str], file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_file(tmp_path / "log" / file, log_rows(3, 0))
    bounds = [1, 9] if partition == "dt" else ["1/1", "1/9"]
    assert len(find(tmp_path, partition, folders, train=bounds).partitions) == 2
    assert file.rpartition("/")[2] in caplog.text


def test_partitions_that_are_all_without_a_value_are_refused_with_advice_that_holds(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has a value: dt=__HIVE_DEFAULT_PARTITION__\. To use .*, rename the folders"):
        find(tmp_path, "dt", ["dt=__HIVE_DEFAULT_PARTITION__"], train=[1, 9])
    (tmp_path / "log/dt=__HIVE_DEFAULT_PARTITION__").rename(tmp_path / "log/dt=1")
    assert taken(find(tmp_path, "dt", [], train=[1, 9])) == {"1": "train"}


@pytest.mark.parametrize(
    ("names", "bounds", "odd", "right"),
    [
        (["v1", "v2", "v10"], ["v1", "v2"], "v10", ["v01", "v02", "v10"]),
        (["2026-W1", "2026-W3", "2026-W20"], ["2026-W1", "2026-W3"], "2026-W20", ["2026-W01", "2026-W03", "2026-W20"]),
        (["1.5", "2.5", "10.5"], ["2.5", "9.5"], None, ["01.5", "02.5", "10.5"]),
        (["1.5", "2.5", "10.5"], ["1.5", "2.5"], "10.5", ["01.5", "02.5", "10.5"]),
        (["07", "10", "1f"], ["07", "1f"], None, []),  # the first digits of a hash are no numbers in texts
    ],
)
def test_texts_whose_numbers_have_another_order_are_named(
    names: list[str], bounds: list[str], odd: str | None, right: list[str],
    tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """v10 is between v1 and v2 in the order of the characters; with the digits that the message wants, it is not."""
    found = find(tmp_path, "dt", [f"dt={name}" for name in names], train=bounds)
    if odd is None:
        assert not caplog.records
        return
    assert taken(found)[odd] == "train"
    assert f"only because of their spelling: dt={odd}. Texts are compared character by character" in caplog.text
    caplog.clear()
    found = find(tmp_path / "other", "dt", [f"dt={name}" for name in right], train=right[:2])
    assert odd not in taken(found) and len(taken(found)) == 2 and not caplog.records


def write_partitions(folder: Path, names: list[str]) -> None:
    write_side(folder / "side.parquet")
    for i, name in enumerate(names):
        write_file(folder / "log" / name / "part-0.parquet", log_rows(40, i))


def keys(folder: Path, manifest: Manifest, split: str) -> list[int]:
    return [int(key) for key in read_split(folder / "table", manifest, split)["key:row"]]


def rows_of(*numbers: int) -> list[int]:
    return [row for number in numbers for row in range(number * 10_000, number * 10_000 + 40)]


@pytest.mark.usefixtures("ray_is_up")
def test_escaped_hours_are_read_and_continued(tmp_path: Path) -> None:
    write_partitions(tmp_path, [f"dt=2026-01-01 {hour:02d}%3A00" for hour in range(6)])
    splits: dict[str, list[Any]] = {
        "train": ["2026-01-01 00:00", "2026-01-01 03:00"],
        "test": ["2026-01-01 04", "2026-01-01 05"],
    }
    sections = with_logs(tmp_path, "dt", splits)
    manifest = preprocess(sections, str(tmp_path / "table"))
    assert keys(tmp_path, manifest, "train") == rows_of(0, 1, 2, 3)
    assert keys(tmp_path, manifest, "test") == rows_of(4, 5)
    assert manifest.partitions[0].value == "2026-01-01 00%3A00"
    assert (tmp_path / "table/train/dt=2026-01-01 00%3A00").is_dir()
    assert preprocess(sections, str(tmp_path / "table")) == manifest
    moved = with_logs(
        tmp_path, "dt", {"train": ["2026-01-01 00", "2026-01-01 04"], "test": ["2026-01-01 05", "2026-01-02"]}
    )
    manifest = preprocess(moved, str(tmp_path / "table"))
    assert keys(tmp_path, manifest, "train") == rows_of(0, 1, 2, 3, 4)
    check_table_is_of(moved, str(tmp_path / "table"), manifest)
    with pytest.raises(UserError, match=r"logs.splits puts dt=2026-01-01 04%3A00 into `test`"):
        check_table_is_of(sections, str(tmp_path / "table"), manifest)


@pytest.mark.usefixtures("ray_is_up")
@pytest.mark.parametrize("spelling", ["07%3A{:02d}", "07:{:02d}", "07%253A{:02d}", "é {:02d}%2F"])
def test_names_are_the_same_behind_a_uri(tmp_path: Path, spelling: str) -> None:
    """In a URI, pyarrow itself reads %3A as a colon."""
    values = [spelling.format(minute) for minute in range(3)]
    write_partitions(tmp_path, [f"dt={value}" for value in values])
    splits: dict[str, list[Any]] = {"train": values[:2]}
    sections = with_logs(tmp_path, "dt", splits)
    uri = sections.model_copy(update={"logs": sections.logs.model_copy(update={"path": f"file://{tmp_path}/log"})})
    manifest = preprocess(uri, f"file://{tmp_path}/table")
    assert keys(tmp_path, manifest, "train") == rows_of(0, 1)
    assert preprocess(uri, f"file://{tmp_path}/table") == manifest
    assert keys(tmp_path, manifest, "train") == rows_of(0, 1)


@pytest.mark.usefixtures("ray_is_up")
def test_nested_folders_are_read_and_continued(tmp_path: Path) -> None:
    write_partitions(tmp_path, [f"year=2024/month={month}/day=01" for month in (1, 2, 10, 3)])
    splits: dict[str, list[Any]] = {"train": ["2024-1-1", "2024-2-1"], "test": ["2024-10-1", "2024-10-1"]}
    sections = with_logs(tmp_path, NESTED, splits)
    file = tmp_path / "experiment.yaml"
    file.write_text(dump_experiment(sections))
    table = Path(sections.table_folder)
    answer = manygate("preprocess", str(file), check=0)
    assert answer.err.count("before and after are: year=2024/month=3/day=01. Change") == 1
    shown = describe_table(str(table))
    assert "2024-1-01: 40 = " in shown and "in the logs, in no split: 2024-3-01" in shown
    assert (table / "partitions/train-2024-1-01.json").is_file()
    assert sorted(path.name for path in (table / "train").iterdir()) == [f"year-month-day=2024-{m}-01" for m in (1, 2)]
    splits = {"train": ["2024-2-1", [2024, 3, 31]], "test": splits["test"]}
    manifest = preprocess(with_logs(tmp_path, NESTED, splits), str(table))
    assert [p.value for p in manifest.partitions] == ["2024-2-01", "2024-3-01", "2024-10-01"]
    (table / "partitions/train-2024-3-01.json").unlink()
    assert preprocess(with_logs(tmp_path, NESTED, splits), str(table)) == manifest


@pytest.mark.usefixtures("ray_is_up")
def test_a_split_without_rows_is_fixed_as_the_message_says(tmp_path: Path) -> None:
    write_partitions(tmp_path, ["dt=1"])
    empty: dict[str, list[Any]] = {name: [] for name in log_rows(1, 0)}
    write_file(tmp_path / "log/dt=2/part-0.parquet", empty)
    sections = with_logs(tmp_path, "dt", {"train": [1, 1], "test": [2, 2]})
    with pytest.raises(UserError, match=r"fix the log, delete partitions/test-2.json in the feature table and run"):
        preprocess(sections, str(tmp_path / "table"))
    write_file(tmp_path / "log/dt=2/part-0.parquet", log_rows(40, 1))
    (tmp_path / "table/partitions/test-2.json").unlink()
    assert keys(tmp_path, preprocess(sections, str(tmp_path / "table")), "test") == rows_of(1)


@pytest.mark.usefixtures("ray_is_up")
def test_a_damaged_record_is_not_taken_for_that_of_another_partition(tmp_path: Path) -> None:
    write_partitions(tmp_path, ["dt=-5", "dt=5"])
    sections, table = with_logs(tmp_path, "dt", {"train": [-9, 9]}), tmp_path / "table"
    manifest = preprocess(sections, str(table))
    assert keys(tmp_path, manifest, "train") == rows_of(0, 1)
    (tmp_path / "log/dt=-5").rename(tmp_path / "elsewhere")
    (table / "partitions/train--5.json").write_text("")
    with pytest.raises(UserError, match="train--5.json is damaged, .* Restore one of them, or delete the damaged file"):
        preprocess(sections, str(table))
    (tmp_path / "elsewhere").rename(tmp_path / "log/dt=-5")
    assert preprocess(sections, str(table)) == manifest


@pytest.mark.usefixtures("ray_is_up")
def test_reading_a_partition_again_loses_files_that_are_gone_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_partitions(tmp_path, ["dt=1"])
    write_file(tmp_path / "log/dt=1/part-1.parquet", log_rows(40, 1))
    sections, table = with_logs(tmp_path, "dt", {"train": [1, 1]}), tmp_path / "table"
    preprocess(sections, str(table))
    (tmp_path / "log/dt=1/part-0.parquet").unlink()
    assert keys(tmp_path, preprocess(sections, str(table)), "train") == rows_of(0, 1)
    assert "the rows of files that are gone will then leave the table" in caplog.text
    (table / "partitions/train-1.json").unlink()
    assert keys(tmp_path, preprocess(sections, str(table)), "train") == rows_of(1)
