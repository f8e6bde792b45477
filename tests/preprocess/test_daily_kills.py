"""A daily job that is killed at any commit is continued to the table of an uninterrupted job."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.preprocess import commit, fit
from pipeline.preprocess.job import preprocess
from pipeline.preprocess.tasks import Done, Item
from pipeline.table.manifest import Manifest, read_manifest
from pipeline.table.settings import fingerprint
from tests.preprocess.logs import digests
from tests.preprocess.test_daily import BUY, TASKS, daily, make, tab, write_day
from tests.workers import fork

pytestmark = pytest.mark.usefixtures("ray_is_up")

# Where a job is killed: before or after a call on a file, and at which of these calls. A growing table first writes its
# existing records again, and then the records of the rebuilt partitions.
KILLS = {
    "extension": [
        ("before", "write_json", "/encoders/encoders.json", 1),
        ("after", "write_json", "/encoders/encoders.json", 1),
        ("before", "write_json", "/partitions/", 2),
        ("before", "write_json", "/manifest.json", 1),
        ("after", "write_json", "/manifest.json", 1),
        ("after", "delete_file", "/partitions/valid-3.json", 1),
    ],
    "growth": [
        ("after", "delete_file", "/manifest.json", 1),
        ("after", "write_json", "/settings.json", 1),
        ("after", "write_json", "/encoders/encoders.json", 1),
        ("before", "write_json", "/partitions/train-2.json", 2),
        ("after", "write_json", "/manifest.json", 1),
    ],
}


def killed_at(kill: tuple[str, str, str, int], folder: Path, what: str, table: Path) -> None:
    """In a process of its own: the job, which kills itself. Units are worked off in this process; Ray has no part."""
    when, name, file, times = kill
    call, calls = getattr(storage, name), []

    def until(path: str, *arguments: Any) -> None:
        if file in "/".join([path, *map(str, arguments[: name == "delete_file"])]):
            calls.append(path)
        if when == "before" and len(calls) == times:
            os.kill(os.getpid(), signal.SIGKILL)
        call(path, *arguments)
        if len(calls) == times:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(storage, name, until)
    fit.run_tasks = commit.run_tasks = one_by_one
    later(folder, what, table)


def one_by_one(
    task: Callable[[Item, Any], dict[str, Any]], items: list[Item], shared: Any, memory: int | None
) -> Iterator[Done]:
    return (Done(item, task(item, shared), None) for item in items)


def later(folder: Path, what: str, table: Path) -> Manifest:
    """A day later: day 3 moves from valid to train, day 4 is new; for "growth" the experiment has also grown."""
    grown: dict[str, Any] = {"scenarios": tab(2, 0, 3), "tasks": [*TASKS, BUY]} if what == "growth" else {}
    return preprocess(daily(folder, splits={"train": [1, 3], "valid": [4, 4]}, **grown), str(table))


def assert_finished_or_none(table: Path) -> None:
    """If there is a manifest, all files that it names exist and were made with the settings beside it."""
    if not (table / "manifest.json").exists():
        return
    manifest = read_manifest(str(table))
    assert manifest.fingerprint == fingerprint(json.loads((table / "settings.json").read_text()))
    files = [file for partition in manifest.partitions for lane in partition.lanes for file in lane]
    for file in files:
        read = pq.read_table(table / file.path, partitioning=None)
        assert read.num_rows == file.rows and read.column_names == [column.name for column in manifest.columns]


@pytest.mark.parametrize("what", list(KILLS))
def test_a_killed_job_continues_to_the_table_of_an_uninterrupted_job(tmp_path: Path, what: str) -> None:
    for day in (1, 2, 3):
        write_day(tmp_path, day)
    make(tmp_path, splits={"train": [1, 2], "valid": [3, 3]})
    if what == "growth":  # for a table whose records lack `made_with`
        for path in (tmp_path / "table/partitions").iterdir():
            record = json.loads(path.read_text())
            del record["made_with"]
            path.write_text(json.dumps(record))
    write_day(tmp_path, 4)
    tables = [shutil.copytree(tmp_path / "table", tmp_path / f"{what}-{i}") for i in range(len(KILLS[what]))]
    for table, kill in zip(tables, KILLS[what], strict=True):
        process = fork(killed_at, kill, tmp_path, what, table, output=tmp_path / "printed.txt")
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, (tmp_path / "printed.txt").read_text()
    later(tmp_path, what, tmp_path / "table")
    uninterrupted = digests(tmp_path / "table")
    for table, kill in zip(tables, KILLS[what], strict=True):
        assert_finished_or_none(table)
        if what == "growth" and "/settings.json" in kill:
            (table / "columns.parquet").write_text("half")
        later(tmp_path, what, table)
        assert digests(table) == uninterrupted, kill
