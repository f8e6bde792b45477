"""The screen of `manygate status JOB`, as exact text."""

import logging
import time
from pathlib import Path

import pytest

from cluster.job_screen import COLUMNS, LINES, JobLog, JobState, LogText, duration, read_log, screen
from pipeline.job_progress import JobProgress, MachineWorkers, SavedCheckpoint, reported
from pipeline.log_records import JsonLines

NOW = 1_764_055_000.0


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.localtime", time.gmtime)


def running(status: str = "RUNNING", ended: float | None = None, ending: str | None = None) -> JobState:
    command = "python -m jobs.cli train examples/kuairand/experiment.yaml --log-format json --resume auto"
    return JobState("kuairand-train-20251125-070838", status, command, NOW - 482, ended, ending)


TRAINING = JobProgress(
    stage="training",
    step=1200,
    total_steps=4000,
    epoch=3,
    samples_per_second=52310.4,
    data_wait=0.0312,
    eta_s=1124,
    metrics={"click": {"loss": 0.4312, "auc": 0.6987}, "watch": {"loss": 1.25}},
    validation={"click": {"auc": 0.6902}, "watch": {"rmse": 12.3041}},
    validation_step=1000,
    checkpoint=SavedCheckpoint(step=1000, uri="s3://b/runs/kuairand/checkpoints/step-00001000", time=NOW - 130),
    restarts=1,
    workers=[MachineWorkers(machine="10.0.0.1", count=3), MachineWorkers(machine="10.0.0.2", count=1)],
)


def line(text: str, progress: JobProgress | None = None) -> str:
    fields = {} if progress is None else reported(progress)
    values = {"name": "pipeline", "levelno": logging.INFO, "levelname": "INFO", "msg": text, "created": NOW - 3}
    return JsonLines().format(logging.makeLogRecord({**values, **fields}))


def test_training() -> None:
    log = read_log(line("step 1200/4000", TRAINING) + "\n")
    assert screen(running(), log, NOW) == (
        "kuairand-train-20251125-070838: RUNNING for 8 min 2 s\n"
        "command       python -m jobs.cli train examples/kuairand/experiment.yaml --lo...\n"
        "started       2025-11-25 07:08:38\n"
        "\n"
        "training      step 1,200 of 4,000 (30%), epoch 3\n"
        "speed         52,310 samples/s\n"
        "data wait     3.1% of the time\n"
        "time left     about 18 min 44 s\n"
        "checkpoint    step 1,000, 2 min 10 s ago\n"
        "              s3://b/runs/kuairand/checkpoints/step-00001000\n"
        "workers       4: 3 on 10.0.0.1, 1 on 10.0.0.2\n"
        "restarts      1\n"
        "\n"
        "metrics       training                    validation, step 1,000\n"
        "  click       loss 0.4312 auc 0.6987      auc 0.6902\n"
        "  watch       loss 1.2500                 rmse 12.3041\n"
        "\n"
        "last line     07:16:37 step 1200/4000"
    )


def test_job_that_has_failed() -> None:
    state = running("FAILED", ended=NOW - 60, ending="exit code 2; Job entrypoint command failed")
    text = screen(state, read_log(line("step 1200", TRAINING) + "\nmanygate: training has diverged\n"), NOW)
    assert text.splitlines()[:5] == [
        "kuairand-train-20251125-070838: FAILED after 7 min 2 s",
        "command       python -m jobs.cli train examples/kuairand/experiment.yaml --lo...",
        "started       2025-11-25 07:08:38",
        "ended         2025-11-25 07:15:40; exit code 2; Job entrypoint command failed",
        "",
    ]
    assert "time left" not in text
    assert text.endswith("last line     manygate: training has diverged")


def test_job_that_has_not_begun() -> None:
    state = JobState("a-train-1", "PENDING", "python", None, None, None)
    assert screen(state, read_log(""), NOW) == (
        "a-train-1: PENDING\ncommand       python\nstarted       -\n\nprogress      none reported yet"
    )


def test_preprocessing() -> None:
    progress = JobProgress(stage="transform", rows=1_000_000, total_rows=4_000_000, eta_s=3.0)
    assert screen(running(), JobLog(progress, None), NOW).splitlines()[3:] == [
        "",
        "stage         transform: 1,000,000 of 4,000,000 (25%) rows",
        "time left     about 3 s",
    ]


@pytest.mark.parametrize("tasks", [1, 5, 30, 300])
@pytest.mark.parametrize("ended", [None, NOW])
def test_the_screen_has_80_columns_and_24_lines(tasks: int, ended: float | None) -> None:
    metrics: dict[str, dict[str, float | None]] = {f"a_task_with_a_long_name_{i}": {"auc": 0.5} for i in range(tasks)}
    checkpoint = SavedCheckpoint(step=10**9, uri="s3://bucket/" + "folder/" * 40 + "step-1", time=None)
    machines = [MachineWorkers(machine=f"10.0.0.{i}", count=8) for i in range(200)]
    progress = TRAINING.updated(
        JobProgress(metrics=metrics, validation=metrics, checkpoint=checkpoint, workers=machines, rows=1, total_rows=9)
    )
    lines = screen(running(ended=ended, ending="exit code 1; " * 20), JobLog(progress, "x" * 500), NOW).splitlines()
    assert len(lines) <= LINES and all(len(line) <= COLUMNS for line in lines)
    assert any(line.strip().endswith("folder/step-1") for line in lines)
    assert any("more tasks" in line for line in lines) == (tasks > (5 if ended is None else 1))


def test_log_in_pieces_is_the_text_that_a_person_knows() -> None:
    log = f"{line('step 1')}\nclick  0.71\n\n{line('step 2')}\nno end"
    expected = "07:16:37 step 1\nclick  0.71\n\n07:16:37 step 2\nno end"
    for size in (1, 2, 7, len(log)):
        text = LogText(as_json=False)
        pieces = [text.add(log[start : start + size]) for start in range(0, len(log), size)]
        assert "".join(pieces) + text.end() == expected
    raw = LogText(as_json=True)
    assert raw.add(log) + raw.end() == log


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3599, "59 min 59 s"), (7500, "2 h 5 min"), (90_000, "1 d 1 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_readme_shows_a_screen_that_status_prints() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert screen(running(), read_log(line("step 1200/4000", TRAINING)), NOW) in readme
