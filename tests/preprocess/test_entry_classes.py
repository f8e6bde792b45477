"""Every entry below the log folder is in exactly one class, and the rows that are read are those that count."""

import json
import os
import tempfile
from collections import Counter
from pathlib import Path

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
from pipeline.report.folders import describe_table
from pipeline.table.entry_counts import describe_entries
from pipeline.table.manifest import Partition, read_manifest
from pipeline.table.partition_record import PartitionRecord
from tests.old_runs.copies import one_after_the_other
from tests.preprocess.logs import experiment
from tests.preprocess.test_bad_logs import FEATURES, TAB, TASKS, good, write

SPLITS = {"train": [1, 1], "test": [2, 2]}  # day=3 is in no split
DAYS = ("day=1", "day=2")
TOPS = ["day=1", "day=1", "day=2", "day=3", "archive", "_tmp", "000000_0"]
NAMES = ["a", "b.parquet", "000000_0", "_x", ".y", "é ü", "day=1"]
OUTSIDE: dict[str, set[str]] = {
    ".": {"disk/a/p1", "disk/p2"},
    "a": {"disk/a/p1"},
    "p2": {"disk/p2"},
    "_h": {"disk/_h/p3"},
    "..": set(),
    "empty": set(),
}
"""Parquet files that are read if a link leads to a path outside of the log."""
KINDS = ["parquet", "parquet", "text", "nothing", "cut", "folder", "link", "out"]
CUT = b"PAR1" + bytes(20)


def parquet(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"file": [path.name]}), path)


paths = st.tuples(st.sampled_from(TOPS), st.lists(st.sampled_from(NAMES), max_size=3)).map(
    lambda parts: "/".join([parts[0], *parts[1]])
)
trees = st.lists(st.tuples(paths, st.sampled_from(KINDS), paths, st.sampled_from(list(OUTSIDE))), max_size=25)


def make_log(folder: Path, tree: list[tuple[str, str, str, str]]) -> dict[str, set[str]]:
    """Makes a log and things outside of it; returns the real Parquet files at each path, without names that exist."""
    for name in ("a/p1", "p2", "_h/p3"):
        parquet(folder / "disk" / name)
    (folder / "disk/empty").mkdir()
    (folder / "disk/back").symlink_to(folder)
    made: dict[str, set[str]] = {}
    links: list[str] = []
    for day in DAYS:
        parquet(folder / "log" / day / "good")
        made[f"{day}/good"] = {f"log/{day}/good"}
    for path, kind, target, outside in tree:
        place = folder / "log" / path
        above = list(place.relative_to(folder).parents)
        if os.path.lexists(place) or any((folder / p).is_symlink() or (folder / p).is_file() for p in above):
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        if kind == "parquet":
            parquet(place)
            made[path] = {f"log/{path}"}
        elif kind == "folder":
            place.mkdir()
        elif kind in ("link", "out"):
            place.symlink_to(folder / "log" / target if kind == "link" else folder / "disk" / outside)
            links.append(path)
        else:
            place.write_bytes({"text": b"a,b\n", "nothing": b"", "cut": CUT}[kind])
    for path in links:
        real = os.path.realpath(folder / "log" / path)  # also of a link to a link that leads out of the log
        made[path] = OUTSIDE.get(os.path.relpath(real, folder / "disk"), set())
    return made


def records_of(found: list[PartitionFiles]) -> list[PartitionRecord]:
    """The records of partitions after they were read."""
    return [
        PartitionRecord(
            Partition(f.partition.split, f.partition.value, 0, 0, 0, [], skipped_files=f.unreadable), "", f.sizes
        )
        for f in found
    ]


def is_hidden(path: str) -> bool:
    return any(part[0] in "_." for part in path.split("/"))


@settings(deadline=None, max_examples=150)
@given(trees)
def test_every_entry_is_in_one_class_and_every_file_is_read_once(tree: list[tuple[str, str, str, str]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        made = make_log(folder, tree)
        logs = experiment(folder, logs={"splits": SPLITS, "unreadable_files": "skip"}).logs
        partitions = find_partitions(logs)
        found = read_files(logs, partitions.partitions)
        classes = classify_entries(logs, partitions, records_of(found), list_log(logs, partitions))

        read = [file.path for partition in found for file in partition.files]
        real = Counter(str((folder / "log" / path).resolve().relative_to(folder)) for path in read)
        counted = [files for p, files in made.items() if p.split("/")[0] in DAYS and not is_hidden(p)]
        assert real == Counter({file for files in counted for file in files})
        assert {path for path, entry in classes.items() if entry.kind == "read"} == set(read)

        leaves, log = set(), folder / "log"
        for place, below, files in os.walk(log):
            links = [n for n in below if (Path(place) / n).is_symlink()]
            leaves |= {str((Path(place) / n).relative_to(log)) for n in [*files, *links]}
            if not below and not files:
                leaves.add(str(Path(place).relative_to(log)))
        followed = {path for path in leaves if any(c.startswith(f"{path}/") for c in classes)}
        assert leaves - followed <= classes.keys() and not followed & classes.keys()
        assert all((log / p).is_symlink() for p in followed)
        assert all(any(p.startswith(f"{link}/") for link in followed) for p in classes.keys() - leaves)
        counts = count_entries(classes)
        assert sum(count.entries for count in counts.values()) == len(classes)
        assert sum(count.bytes for count in counts.values()) == sum(entry.bytes for entry in classes.values())
        for path, entry in classes.items():
            if is_hidden(path):
                assert entry.kind == "hidden"
            elif path.startswith("day=3/") and not (log / path).is_symlink():
                assert entry.kind == "in_no_split"
            elif (log / path).is_symlink():
                assert entry.kind not in ("hidden", "late")
            elif (log / path).is_file() and (log / path).read_bytes() == CUT and path.split("/")[0] in DAYS:
                assert entry.kind == "unreadable"


def small_log(folder: Path) -> None:
    for path in ("day=1/a", "day=2/b/c.parq", "day=3/d", "day=1/_tmp/e", "stray", "archive/day=1/f"):
        parquet(folder / "log" / path)
    (folder / "log/day=1/_SUCCESS").touch()
    (folder / "log/day=2/notes.txt").write_text("text")
    (folder / "log/day=2/cut").write_bytes(CUT)


SMALL = {
    "read": {"day=1/a", "day=2/b/c.parq"},
    "unreadable": {"day=2/cut"},
    "late": {"day=1/late"},
    "in_no_split": {"day=3/d"},
    "hidden": {"day=1/_SUCCESS", "day=1/_tmp/e"},
    "not_parquet": {"day=2/notes.txt"},
    "beside": {"archive/day=1/f", "stray"},
}


@pytest.mark.parametrize("where", ["disk", "store"])
def test_each_class_on_a_disk_and_in_a_store(tmp_path: Path, where: str) -> None:
    small_log(tmp_path)
    path = {} if where == "disk" else {"path": f"local://{tmp_path}/log"}  # listed as an object store is
    logs = experiment(tmp_path, logs={"splits": SPLITS, "unreadable_files": "skip", **path}).logs
    partitions = find_partitions(logs)
    records = records_of(read_files(logs, partitions.partitions))
    parquet(tmp_path / "log/day=1/late")
    classes = classify_entries(logs, partitions, records, list_log(logs, partitions))
    for kind, expected in SMALL.items():
        assert {path for path, entry in classes.items() if entry.kind == kind} == expected
    assert classes["day=2/notes.txt"].bytes == 4
    lines = describe_entries(count_entries(classes))
    assert "  in no split: 1 files" in lines[4]


def test_the_classes_are_in_the_manifest_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in (fit, commit):
        monkeypatch.setattr(stage, "run_tasks", one_after_the_other)
    for path in ("day=1/a", "day=2/b", "day=3/c"):
        write(good(), tmp_path / "log" / path)
    (tmp_path / "log/day=1/_SUCCESS").touch()
    sections = {"features": FEATURES, "tasks": TASKS, "scenarios": [TAB]}
    made = experiment(tmp_path, logs={"joins": [], "splits": SPLITS}, **sections)
    shown = ["read: 2 files", "in no split: 1 files", "hidden, because a name begins with _ or .: 1 files, 0 B"]
    printed = make_run_table(made, False, lambda: None)
    assert all(line in printed and line in describe_table(made.table_folder) for line in shown)

    file = Path(made.table_folder) / "manifest.json"
    before = file.stat().st_ino
    make_run_table(made, False, lambda: None)
    assert file.stat().st_ino == before

    write(good(), tmp_path / "log/day=1/late")
    assert "they came after their partition was read: 1 files" in make_run_table(made, False, lambda: None)
    assert "they came after their partition was read: 1 files" in describe_table(made.table_folder)

    document = json.loads(file.read_text())
    assert document.pop("log_entries")["read"]["entries"] == 2
    file.write_text(json.dumps(document))  # as an earlier version wrote it
    assert all(line in make_run_table(made, False, lambda: None) for line in shown)
    assert json.loads(file.read_text()) == document and "logs.path" not in describe_table(made.table_folder)


@pytest.mark.parametrize("first", ["day=1", "day=2"])
def test_a_file_that_a_later_partition_links_to_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, first: str
) -> None:
    """The second partition comes in a later run, before or after the first in the order of partitions."""
    for stage in (fit, commit):
        monkeypatch.setattr(stage, "run_tasks", one_after_the_other)
    second = {"day=1": "day=2", "day=2": "day=1"}[first]
    write(good(), tmp_path / "disk/shared")
    for day in DAYS:
        write(good(), tmp_path / "log" / day / "own")
    (tmp_path / "log" / first / "link").symlink_to(tmp_path / "disk/shared")
    (tmp_path / "log" / second).rename(tmp_path / "to come")
    sections = {
        "features": FEATURES,
        "tasks": TASKS,
        "scenarios": [TAB],
        "logs": {"joins": [], "splits": {"train": [1, 2]}},
    }
    made = experiment(tmp_path, **sections)
    make_run_table(made, False, lambda: None)

    (tmp_path / "to come").rename(tmp_path / "log" / second)
    (tmp_path / "log" / second / "link").symlink_to("../../disk/shared")
    printed = make_run_table(made, False, lambda: None)
    assert {p.value: p.rows_read for p in read_manifest(made.table_folder).partitions} == {
        first[-1]: 2 * good().num_rows,
        second[-1]: good().num_rows,
    }
    assert f"to what is read under another name, or to nothing: not read: {second}/link" in caplog.text
    for _ in range(2):
        assert "  read: 3 files" in printed and "  links that are not followed: 1 files" in printed
        printed = make_run_table(made, False, lambda: None)
    assert "have changed since they were read" not in caplog.text


@pytest.mark.parametrize("inside", ["log", "log/day=1", "log/archive/deep"])
@pytest.mark.parametrize("where", ["disk", "store"])
def test_what_the_run_itself_writes_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str, where: str
) -> None:
    for stage in (fit, commit):
        monkeypatch.setattr(stage, "run_tasks", one_after_the_other)
    for path in ("day=1/a", "day=2/b", "archive/stray"):
        write(good(), tmp_path / "log" / path)
    start = str(tmp_path) if where == "disk" else f"local://{tmp_path}"
    logs = {"path": f"{start}/log", "joins": [], "splits": SPLITS}
    sections = {"features": FEATURES, "tasks": TASKS, "scenarios": [TAB], "logs": logs}
    made = experiment(tmp_path, output=f"{start}/{inside}/runs", **sections)
    for _ in range(3):
        make_run_table(made, False, lambda: None)
        counts = read_manifest(made.table_folder).log_entries
        assert {kind: count.entries for kind, count in counts.items()} == {"beside": 1, "read": 2}
        parquet(tmp_path / inside / "runs/test/predictions/p.parquet")


def test_a_name_that_is_not_utf8_is_refused_also_in_a_partition_that_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stage in (fit, commit):
        monkeypatch.setattr(stage, "run_tasks", one_after_the_other)
    for path in ("day=1/a", "day=2/b"):
        write(good(), tmp_path / "log" / path)
    sections = {"features": FEATURES, "tasks": TASKS, "scenarios": [TAB]}
    made = experiment(tmp_path, logs={"joins": [], "splits": SPLITS}, **sections)
    make_run_table(made, False, lambda: None)
    bad = os.fsencode(tmp_path / "log/day=1") + b"/\xff"
    Path(os.fsdecode(bad)).touch()
    with pytest.raises(UserError, match=r"contains something whose name is not UTF-8: b'.*\\xff'\. Rename it"):
        make_run_table(made, False, lambda: None)
    Path(os.fsdecode(bad)).unlink()
    assert "read: 2 files" in make_run_table(made, False, lambda: None)
