"""Logs that are Delta tables: the rows of their current files, each once, or a refusal. No test here needs Ray.

The commits are written as the protocol describes them: https://github.com/delta-io/delta/blob/master/PROTOCOL.md
"""

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.preprocess import commit, fit
from pipeline.preprocess.discover import PartitionFiles, read_files
from pipeline.preprocess.entries import classify_entries, count_entries, list_log
from pipeline.preprocess.partitions import find_partitions
from pipeline.preprocess.run_table import make_run_table
from pipeline.table.manifest import read_manifest
from tests.old_runs.copies import one_after_the_other
from tests.preprocess.logs import experiment
from tests.preprocess.test_bad_logs import FEATURES, TAB, TASKS, good, write
from tests.preprocess.test_entry_classes import DAYS, SPLITS, make_log, records_of, trees

PROTOCOL = {"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}}
METADATA = {
    "metaData": {
        "id": "t",
        "format": {"provider": "parquet", "options": {}},
        "partitionColumns": ["day"],
        "configuration": {},
    }
}
INFO = {"commitInfo": {"operation": "WRITE", "path": "day=1/not a file"}}


def add(path: str, **more: Any) -> dict[str, Any]:
    values = {"day": path.partition("/")[0].removeprefix("day=")}
    return {"add": {"path": quote(path), "partitionValues": values, "size": 1, "dataChange": True} | more}


def remove(path: str) -> dict[str, Any]:
    return {"remove": {"path": quote(path), "deletionTimestamp": 0, "dataChange": True}}


def commits(log: Path, *versions: list[dict[str, Any]]) -> None:
    """Writes further versions of the table."""
    folder = log / "_delta_log"
    folder.mkdir(parents=True, exist_ok=True)
    first = len(list(folder.glob("*.json")))
    for number, actions in enumerate(versions, start=first):
        (folder / f"{number:020}.json").write_text("\n".join(map(json.dumps, actions)) + "\n")


def read(folder: Path, **logs: Any) -> list[PartitionFiles]:
    of = experiment(folder, logs={"splits": SPLITS, **logs}).logs
    found = find_partitions(of)
    return read_files(of, found.partitions, found.current)


operations = st.lists(
    st.tuples(st.sampled_from(["append", "compact", "drop"]), st.sampled_from(DAYS), st.sampled_from("a é%#+=")),
    max_size=8,
)


@settings(deadline=None, max_examples=60)
@given(operations)
def test_the_rows_are_those_of_the_table(history: list[tuple[str, str, str]]) -> None:
    """Rows are appended to a day, rewritten into one file, or deleted: the table is followed row by row."""
    with tempfile.TemporaryDirectory() as name:
        folder, number = Path(name), 0
        rows: dict[str, list[int]] = {day: [] for day in DAYS}
        files: dict[str, list[str]] = {day: [] for day in DAYS}

        def write_rows(day: str, values: list[int], mark: str) -> str:
            path = f"{day}/{mark}-{number}.parquet"
            (folder / "log" / day).mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table({"row": pa.array(values, pa.int64())}), folder / "log" / path)
            return path

        commits(folder / "log", [PROTOCOL, METADATA, INFO])
        for operation, day, mark in [("append", day, "first") for day in DAYS] + history:
            number += 1
            gone = files[day] if operation != "append" else []
            if operation == "append":
                rows[day].append(number)
            elif operation == "drop":
                rows[day] = [number]
            path = write_rows(day, rows[day][-1:] if operation == "append" else rows[day], mark)
            commits(folder / "log", [INFO, *map(remove, gone), add(path)])
            files[day] = [file for file in files[day] if file not in gone] + [path]
        found = read(folder)
        for day, of_day in zip(DAYS, found, strict=True):
            paths = [file.path for file in of_day.files]
            assert sorted(paths) == sorted(files[day])
            tables = [pq.read_table(folder / "log" / path, partitioning=None) for path in paths]
            assert sorted(pa.concat_tables(tables)["row"].to_pylist()) == sorted(rows[day])


@settings(deadline=None, max_examples=80)
@given(trees, st.randoms(use_true_random=False))
def test_every_entry_is_in_one_class(tree: list[tuple[str, str, str, str]], random: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        made, log = make_log(folder, tree), folder / "log"
        data = [p for p in made if p.split("/")[0] in DAYS and not (log / p).is_symlink()]
        visible = [p for p in data if not any(part[0] in "_." for part in p.split("/"))]
        current = {p for p in visible if p.endswith("/good") or random.random() < 0.5}
        commits(log, [PROTOCOL, METADATA, *map(add, sorted(visible))], [remove(p) for p in visible if p not in current])
        if current == set(visible):
            (log / f"_delta_log/{1:020}.json").unlink()
        of = experiment(folder, logs={"splits": SPLITS, "unreadable_files": "skip"}).logs
        partitions = find_partitions(of)
        found = read_files(of, partitions.partitions, partitions.current)
        classes = classify_entries(of, partitions, records_of(found), list_log(of, partitions))
        assert {file.path for day in found for file in day.files} == current
        assert {path for path, entry in classes.items() if entry.kind == "read"} == current
        assert all(classes[path].kind in ("not_current", "link") for path in set(visible) - current)
        assert {path for path in classes if path.startswith("_delta_log")} and all(
            entry.kind == "hidden" for path, entry in classes.items() if path.startswith("_delta_log")
        )
        assert sum(count.entries for count in count_entries(classes).values()) == len(classes)
        assert "late" not in Counter(entry.kind for entry in classes.values())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path in ("day=1/old", "day=1/new", "day=2/only"):
        write(good(), tmp_path / "log" / path)
    first = [PROTOCOL, METADATA, add("day=1/old"), add("day=2/only")]
    commits(tmp_path / "log", first, [remove("day=1/old"), add("day=1/new")])
    return tmp_path


@pytest.mark.parametrize("where", ["disk", "store"])
def test_a_replaced_file_is_not_read(folder: Path, where: str) -> None:
    path = {} if where == "disk" else {"path": f"local://{folder}/log"}
    assert [[file.path for file in day.files] for day in read(folder, **path)] == [["day=1/new"], ["day=2/only"]]


NOT_PLAIN: dict[str, tuple[list[dict[str, Any]], str]] = {
    "reader version": ([{"protocol": {"minReaderVersion": 3, "readerFeatures": ["x"]}}], "a reader of version 3"),
    "names of columns": (
        [{"metaData": {"configuration": {"delta.columnMapping.mode": "name"}}}],
        r"other names in its files \(delta.columnMapping.mode\)",
    ),
    "deletion vector": ([add("day=2/only", deletionVector={"storageType": "u"})], "deleted by a deletion vector"),
    "URI": ([{"add": {"path": "s3://bucket/day=1/x"}}], "s3://bucket/day=1/x is not in the folder of the table"),
    "file URI": ([{"add": {"path": "file:/log/day=1/x"}}], "file:/log/day=1/x is not in the folder"),
    "absolute path": ([{"add": {"path": "/log/day=1/x"}}], "/log/day=1/x is not in the folder of the table"),
    "path upwards": ([{"add": {"path": "day=1/%2E%2E/%2E%2E/x"}}], "is not in the folder of the table"),
    "no partition": ([{"add": {"path": "x.parquet"}}], "x.parquet is not in a folder day=VALUE"),
    "random prefix": ([{"add": {"path": "aB/day=1/x"}}], "aB/day=1/x is not in a folder day=VALUE"),
    "another value": (
        [add("day=1/x", partitionValues={"day": "2"})],
        "day=1/x is not in a folder of its value of day, '2'",
    ),
    "another column": ([add("day=1/x", partitionValues={"day": "1", "s": None})], "its value of s, None"),
    "unknown add": ([{"add": {"file": "day=1/x"}}], "an action that is not understood"),
    "unknown remove": ([{"remove": 1}], "an action that is not understood"),
    "unknown metadata": ([{"metaData": []}], "an action that is not understood"),
    "wrong values": ([add("day=1/x", partitionValues=[1])], r"partitionValues is \[1\], which is not understood"),
    "wrong configuration": ([{"metaData": {"configuration": "x"}}], "configuration is 'x', which is not understood"),
    "no object": ([[1]], "an action that is not understood"),  # type: ignore[list-item]
    "empty": ([], "00000000000000000002.json is empty"),
}


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_a_table_that_is_not_plain_is_refused(folder: Path, kind: str) -> None:
    actions, message = NOT_PLAIN[kind]
    commits(folder / "log", actions)
    with pytest.raises(UserError, match=f"contains a Delta table.*{message}.*Export the current rows as plain Parq"):
        read(folder)


def test_values_and_paths_are_encoded_in_two_ways(tmp_path: Path) -> None:
    """Hive escapes values in names of folders, and writers encode paths in commits as URIs, each in its own way."""
    folders = {"hour=00%3A00": "00:00", "hour=01%3A00": "01:00", "hour=__HIVE_DEFAULT_PARTITION__": None}
    for folder in folders:
        for name in ("a b", "old"):
            write(good(), tmp_path / "log" / folder / name)
    values = {folder: {"hour": value} for folder, value in folders.items()}
    spaces = [add(f"{folder}/a b", partitionValues=values[folder]) for folder in folders]
    old = [add(f"{folder}/old", partitionValues=values[folder]) for folder in folders]
    gone = [{"remove": {"path": quote(f"{folder}/old", safe="/=")}} for folder in folders]
    commits(tmp_path / "log", [PROTOCOL, METADATA, *spaces, *old], gone)
    splits = {"train": ["00:00", "00:00"], "test": ["01:00", "01:00"]}
    days = read(tmp_path, partition="hour", splits=splits)
    assert [[file.path for file in day.files] for day in days] == [["hour=00%3A00/a b"], ["hour=01%3A00/a b"]]


def test_what_later_versions_have_changed_back_does_not_count(folder: Path) -> None:
    """Files that were elsewhere and are removed, and a protocol that was lowered again."""
    raised = {"protocol": {"minReaderVersion": 3, "readerFeatures": ["deletionVectors"]}}
    vector = add("day=2/only", deletionVector={"storageType": "u"})
    elsewhere = {"path": "s3://bucket/x"}
    commits(folder / "log", [raised, vector, {"add": elsewhere}])
    commits(folder / "log", [PROTOCOL, METADATA, {"remove": elsewhere}, add("day=2/only", deletionVector=None)])
    assert [[file.path for file in day.files] for day in read(folder)] == [["day=1/new"], ["day=2/only"]]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("truncated behind a checkpoint", "00000000000000000000.json is missing"),
        ("gap", "00000000000000000001.json is missing"),
        ("newest version only in a checkpoint", "00000000000000000003.json is missing"),
        ("no commits", "00000000000000000000.json is missing"),
        ("half a line", r"00000000000000000001.json cannot be read \("),
        ("not UTF-8", r"00000000000000000001.json cannot be read \("),
        ("a folder", r"00000000000000000001.json cannot be read \("),
        ("endless brackets", r"00000000000000000001.json cannot be read \("),
    ],
)
def test_a_damaged_log_is_refused(folder: Path, damage: str, message: str) -> None:
    log = folder / "log/_delta_log"
    commits(folder / "log", [INFO])
    second = log / f"{1:020}.json"
    match damage:
        case "truncated behind a checkpoint":
            (log / f"{0:020}.json").unlink()
            (log / f"{1:020}.checkpoint.parquet").touch()
        case "gap":
            second.unlink()
        case "newest version only in a checkpoint":
            (log / f"{3:020}.checkpoint.0000000001.0000000002.parquet").touch()
        case "no commits":
            for file in log.iterdir():
                file.unlink()
        case "half a line":
            second.write_text(second.read_text()[:-9])
        case "not UTF-8":
            second.write_bytes(b'{"add": {"path": "day=1/\xff"}}')
        case "a folder":
            second.unlink()
            second.mkdir()
        case "endless brackets":
            second.write_text("[" * 100_000)
    with pytest.raises(UserError, match=f"contains a Delta table.*{message}.*whose rows would count twice"):
        read(folder)


def test_a_checkpoint_beside_all_commits_changes_nothing(folder: Path) -> None:
    for name in (f"{1:020}.checkpoint.parquet", "_last_checkpoint", f"{1:020}.crc", f".{1:020}.json.crc"):
        (folder / "log/_delta_log" / name).touch()
    assert [[file.path for file in day.files] for day in read(folder)] == [["day=1/new"], ["day=2/only"]]


def test_a_current_file_that_is_gone_is_no_silent_loss(folder: Path) -> None:
    (folder / "log/day=1/new").unlink()
    with pytest.raises(UserError, match=r"day=1/new is a current file of the Delta table, but it is not there"):
        read(folder)


def test_a_day_that_is_rewritten_later_is_reported_and_the_advice_helps(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for stage in (fit, commit):
        monkeypatch.setattr(stage, "run_tasks", one_after_the_other)
    of = experiment(folder, logs={"joins": [], "splits": SPLITS}, features=FEATURES, tasks=TASKS, scenarios=[TAB])
    rows = good().num_rows
    shown = "not read, because the Delta table has replaced or deleted them: 1 files"
    assert shown in make_run_table(of, False, lambda: None)
    manifest = read_manifest(of.table_folder)
    assert [partition.rows_read for partition in manifest.partitions] == [rows, rows]
    assert "have changed since they were read" not in caplog.text

    write(good(), folder / "log/day=1/compacted")
    commits(folder / "log", [remove("day=1/new"), add("day=1/compacted", dataChange=False)])
    make_run_table(of, False, lambda: None)
    assert "(new: day=1/compacted; gone: day=1/new), and the feature table does not contain the change" in caplog.text
    (record,) = (Path(of.table_folder) / "partitions").glob("train-*.json")
    assert f"To include it, delete {record} and run again" in caplog.text
    record.unlink()
    caplog.clear()
    make_run_table(of, False, lambda: None)
    counts = read_manifest(of.table_folder).log_entries
    assert (counts["read"].entries, counts["not_current"].entries) == (2, 2) and "late" not in counts
    assert [partition.rows_read for partition in read_manifest(of.table_folder).partitions] == [rows, rows]
    assert "have changed since they were read" not in caplog.text


def test_the_advice_for_a_table_that_is_not_plain_gives_each_row_once(folder: Path) -> None:
    commits(folder / "log", [{"protocol": {"minReaderVersion": 2}}])
    with pytest.raises(UserError, match=r"Export .* into folders day=VALUE of another folder, and set logs\.path"):
        read(folder)
    for path in ("day=1/new", "day=2/only"):
        write(pq.read_table(folder / "log" / path, partitioning=None), folder / "export" / path)
    days = read(folder, path=str(folder / "export"))
    assert [sum(file.group_rows[0] for file in day.files) for day in days] == [good().num_rows, good().num_rows]
