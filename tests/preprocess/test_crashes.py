"""Tasks whose process crashes or is killed: the file is named, and lack of memory is not taken for a damaged file."""

import multiprocessing
import os
import signal
import threading
import traceback
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray

from cluster.connect import keep_to_loopback, start_private_ray
from pipeline.errors import UserError
from pipeline.preprocess import commit, fit, tasks
from pipeline.preprocess.task_errors import LAST_COLUMN
from pipeline.preprocess.tasks import run_tasks
from pipeline.preprocess.units import Unit, UnitRows
from tests.preprocess.test_bad_logs import ROWS, folder, good, refused, run, write
from tests.workers import fork

__all__ = ["folder"]  # the fixture

count_unit, transform_unit = fit.count_unit, commit.transform_unit
ADVICE = "set cluster.memory_per_task, .*use fewer CPUs"


@pytest.fixture(autouse=True)
def few_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "RETRIES", 1)


def end(how: str) -> None:
    """Ends this process, or raises, as a reader may."""
    match how:
        case "abort":
            os.abort()
        case "segmentation fault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exit":
            os._exit(7)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "memory of Arrow":
            pa.allocate_buffer(2**62)
        case "crash once" if multiprocessing.parent_process() is None:
            os.abort()
        case "error in child" if multiprocessing.parent_process() is None:
            os.abort()
        case "error in child" | "error":
            raise ZeroDivisionError("a fault\nof our own")


def task(item: dict[str, Any], how: str) -> dict[str, Any]:
    if item.get("file") in (None, "day=1/bad.parquet"):
        end(how)
    return {"rows": 1}


UNITS = [
    Unit("train", "1", number, f"day=1/{name}.parquet", groups, 0, 1).item
    for number, (name, groups) in enumerate([("good", [0]), ("bad", [0]), ("bad", [1, 2]), ("more", [0])])
]
BAD = {number: f"in row group{groups} of day=1/bad.parquet" for number, groups in ((1, " 0"), (2, "s 1 to 2"))}


@pytest.mark.usefixtures("ray_is_up")
@pytest.mark.parametrize(("how", "end"), [("abort", "SIGABRT"), ("segmentation fault", "SIGSEGV")])
def test_a_crash_makes_only_its_own_file_unreadable(how: str, end: str) -> None:
    done = {done.item["number"]: (done.result, done.unreadable) for done in run_tasks(task, UNITS, how)}
    bad = {number: ({}, f"its reader crashed ({end}) {part}") for number, part in BAD.items()}
    assert done == {0: ({"rows": 1}, None), 3: ({"rows": 1}, None), **bad}


@pytest.mark.usefixtures("ray_is_up")
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("kill", "was killed, most likely for lack of memory"),
        ("memory of Arrow", r"had too little memory \(malloc of size .* failed\)"),
    ],
)
def test_lack_of_memory_is_an_error_that_names_the_file(how: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^The task for row group 0 of day=1/bad.parquet {message}: {ADVICE}"):
        list(run_tasks(task, UNITS[:2], how))


@pytest.mark.ray
def test_a_task_that_the_memory_monitor_kills_is_not_repeated_without_end(tmp_path: Path) -> None:
    printed = tmp_path / "printed.txt"
    process = fork(run_on_a_full_machine, output=printed)
    process.join(120)
    assert process.exitcode == 0, printed.read_text()


def run_on_a_full_machine() -> None:
    """As Ray's memory monitor sees it."""
    os.environ["RAY_memory_usage_threshold"] = "0.01"  # noqa: SIM112 - the spelling of Ray
    os.environ["RAY_memory_monitor_refresh_ms"] = "100"  # noqa: SIM112
    os.environ.pop("RAY_AUTH_MODE", None)  # of another test; in this process Ray has already read it
    keep_to_loopback()
    start_private_ray(num_cpus=1)
    tasks.MEMORY_RETRIES = 1
    message = f"^The task for row group 0 of day=1/good.parquet was killed, most likely for lack of memory: {ADVICE}"
    with pytest.raises(UserError, match=message):
        list(run_tasks(wait_for_the_memory_monitor, UNITS[:1], None))
    ray.shutdown()


def wait_for_the_memory_monitor(item: dict[str, Any], shared: None) -> dict[str, Any]:
    threading.Event().wait()
    return {}


@pytest.mark.usefixtures("ray_is_up")
def test_a_crash_that_happens_only_in_the_first_process_is_no_failure() -> None:
    assert [done.result for done in run_tasks(task, UNITS[1:2], "crash once")] == [{"rows": 1}]
    with pytest.raises(UserError, match="failed unexpectedly: ZeroDivisionError: a fault"):
        list(run_tasks(task, UNITS[1:2], "error in child"))


@pytest.mark.usefixtures("ray_is_up")
def test_a_crash_that_is_not_that_of_a_reader_is_an_error() -> None:
    with pytest.raises(UserError, match=r"task \({'name': 'user', 'range': 0}\) crashed \(SIGABRT\)\. Run the command"):
        list(run_tasks(task, [{"name": "user", "range": 0}], "abort"))
    with pytest.raises(UserError, match=r"for row group 0 of day=1/bad.parquet crashed \(exit code 7\)\. Run the"):
        list(run_tasks(task, UNITS[1:2], "exit"))  # as for a reason that has nothing to do with the file
    with pytest.raises(UserError, match=r"task \({'name': 'user'}\) was killed, most likely for lack of memory"):
        list(run_tasks(task, [{"name": "user"}], "kill"))


def with_column(item: dict[str, Any], how: str) -> dict[str, Any]:
    LAST_COLUMN.set("price")
    return task(item, how)


@pytest.mark.usefixtures("ray_is_up")
@pytest.mark.parametrize(
    ("function", "item", "what"),
    [
        (task, UNITS[1], r"The task for row group 0 of day=1/bad.parquet failed unexpectedly: "),
        (
            with_column,
            UNITS[2],
            r"The task for row groups 1 to 2 of .* unexpectedly, after it used the column 'price': ",
        ),
        (
            task,
            {"name": "user", "range": 0},
            r"A preprocessing task \({'name': 'user', 'range': 0}\) failed unexpe.*: ",
        ),
    ],
)
def test_an_unexpected_error_is_one_sentence_with_its_traceback_behind(
    function: Any, item: dict[str, Any], what: str
) -> None:
    with pytest.raises(UserError, match=f"^{what}ZeroDivisionError: a fault. Complete .*--debug") as error:
        list(run_tasks(function, [item], "error"))
    assert "\n" not in str(error.value)
    shown = "".join(traceback.format_exception(error.value))
    assert "in end\n" in shown and "of our own" in shown


def failing(item: dict[str, Any], shared: Any) -> dict[str, Any]:
    UnitRows(shared.plan, Unit(**item), {"row", "price"}).column("price")
    raise ArithmeticError("a fault of our own")


@pytest.mark.usefixtures("ray_is_up")
@pytest.mark.parametrize(("module", "function"), [(fit, "count_unit"), (commit, "transform_unit")])
def test_an_unexpected_error_names_file_row_group_and_column(
    folder: Path, module: Any, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, function, failing)
    what = r"^The task for row group 0 of day=\d/good.parquet failed unexpectedly, after it used the column 'price': "
    refused(folder, [what + "ArithmeticError: a fault of our own"])


def aborting(stage: str, item: dict[str, Any], shared: Any) -> dict[str, Any]:
    if item["file"].endswith("odd.parquet"):
        os.abort()
    return (count_unit if stage == "fit" else transform_unit)(item, shared)


def count_or_abort(item: dict[str, Any], shared: Any) -> dict[str, Any]:
    return aborting("fit", item, shared)


def transform_or_abort(item: dict[str, Any], shared: Any) -> dict[str, Any]:
    return aborting("transform", item, shared)


@pytest.mark.usefixtures("ray_is_up")
@pytest.mark.parametrize("day", [1, 2])
def test_a_file_that_crashes_its_reader_is_refused_or_skipped(
    folder: Path, day: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Day 1 is read by both passes, day 2 only by the second."""
    write(good(first=900), folder / f"log/day={day}/odd.parquet")
    monkeypatch.setattr(fit, "count_unit", count_or_abort)
    monkeypatch.setattr(commit, "transform_unit", transform_or_abort)
    reason = rf"The log file .*day={day}/odd.parquet cannot be read: its reader crashed \(SIGABRT\) in row group 0 of "
    refused(folder, [reason, "unreadable_files=skip"])
    manifest = run(folder, "skipping", logs={"unreadable_files": "skip"})
    skipped = {p.value: p.skipped_files for p in manifest.partitions if p.skipped_files}
    assert skipped == {str(day): [f"day={day}/odd.parquet"]}
    assert [p.kept for p in manifest.partitions] == [ROWS, ROWS]
