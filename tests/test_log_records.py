"""Log records as JSON: nothing that a person reads is lost on the way, and nothing else is changed."""

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.job_progress import JobProgress, MachineWorkers, SavedCheckpoint, latest, progress_of, reported
from pipeline.log_records import TEXT, JsonLines, LogFields, log_fields, parse_line, to_document, to_record


@pytest.fixture(autouse=True)
def _fields(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in vars(LogFields()).items():
        monkeypatch.setattr(log_fields, name, value)


def record(text: str = "step 4/8", **fields: object) -> logging.LogRecord:
    values = {"name": "pipeline.training", "levelno": logging.INFO, "levelname": "INFO", "msg": text}
    return logging.makeLogRecord({**values, "created": 1764054518.25, **fields})


def test_a_record_is_one_line_with_run_worker_and_step() -> None:
    log_fields.begin("kuairand", worker=0)
    log_fields.step = 4
    line = JsonLines().format(record(**reported(JobProgress(step=4, total_steps=8))))
    assert json.loads(line) == {
        "time": "2025-11-25T07:08:38.250+00:00",
        "level": "INFO",
        "logger": "pipeline.training",
        "run": "kuairand",
        "worker": 0,
        "step": 4,
        "text": "step 4/8",
        "progress": {"step": 4, "total_steps": 8},
    }


@given(st.text())
def test_a_line_is_shown_as_the_text_that_it_would_have_been(text: str) -> None:
    original = record(text)
    line = JsonLines().format(original)
    assert "\n" not in line
    parsed = parse_line(line)
    assert parsed is not None
    assert TEXT.format(parsed) == TEXT.format(original)


def test_the_stack_trace_of_an_error_is_part_of_the_text() -> None:
    try:
        raise ValueError("seven")
    except ValueError as error:
        failed = record("it failed", exc_info=(ValueError, error, error.__traceback__))
    assert to_document(failed)["text"].startswith("it failed\nTraceback")
    assert to_document(failed)["text"].endswith("ValueError: seven")


def test_a_record_keeps_its_own_run_worker_and_step_in_the_driver() -> None:
    log_fields.begin("variant", worker=1)
    log_fields.step = 7
    sent = to_document(record())
    log_fields.begin("comparison", worker=None)
    assert to_document(to_record(sent)) == sent


@pytest.mark.parametrize(
    "line",
    ["", "click  0.71", "{", '{"time": ', '{"time": 3}', '{"time": "x", "level": "INFO"}', '{"time": ' + "[" * 100_000],
)
def test_other_lines_are_no_records(line: str) -> None:
    assert parse_line(line) is None


def test_the_newest_value_of_everything_counts() -> None:
    saved = SavedCheckpoint(step=4, uri="runs/a/checkpoints/step-00000004", time=1.0)
    updates = [
        JobProgress(workers=[MachineWorkers(machine="10.0.0.1", count=2)], restarts=0),
        JobProgress(step=4, total_steps=8, metrics={"click": {"auc": 0.5}}),
        JobProgress(checkpoint=saved),
        JobProgress(step=6, metrics={"click": {"auc": None}}),
    ]
    records = [to_record(json.loads(JsonLines().format(record(**reported(update))))) for update in updates]
    assert latest(records) == JobProgress(
        workers=[MachineWorkers(machine="10.0.0.1", count=2)],
        restarts=0,
        step=6,
        total_steps=8,
        metrics={"click": {"auc": None}},
        checkpoint=saved,
    )


def test_rows_belong_to_their_stage() -> None:
    fitted = JobProgress(stage="fit", rows=8, total_rows=8, eta_s=0.0)
    trained = fitted.updated(JobProgress(stage="training", step=0)).updated(JobProgress(step=4))
    assert (trained.stage, trained.rows, trained.total_rows, trained.eta_s, trained.step) == (
        "training",
        None,
        None,
        None,
        4,
    )
    assert fitted.updated(JobProgress(stage="fit", rows=9)).total_rows == 8


def test_progress_of_another_version_is_read_as_far_as_it_is_known() -> None:
    assert progress_of(record(progress={"step": 4, "phase": "new"})) == JobProgress(step=4)
    assert progress_of(record(progress={"step": "many"})) is None
    assert progress_of(record(progress=[1])) is None
