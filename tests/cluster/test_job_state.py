"""Sentences about jobs that have ended or do not start."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from cluster.job_state import EXPLANATIONS, describe_ending, describe_waiting

TRACE = (
    "runtime_env setup failed: x\nTraceback (most recent call last):\n  File 'a.py', line 1\nOSError: no space left\n"
)


def ended(code: int | None, error_type: Any = None, message: str | None = "why", status: str = "FAILED") -> str:
    details = SimpleNamespace(
        status=JobStatus(status), driver_exit_code=code, error_type=error_type, message=message, submission_id="job"
    )
    return describe_ending(details)


def test_every_error_type_of_ray_has_a_sentence() -> None:
    """But not that of a command that failed: it has an exit code and a log."""
    from ray.dashboard.modules.job.common import JobErrorType

    named = {kind for kind in JobErrorType if kind.value in EXPLANATIONS}
    others = {"JOB_ENTRYPOINT_COMMAND_ERROR", "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE"}
    assert {kind.value for kind in JobErrorType} == {kind.value for kind in named} | others
    for kind in JobErrorType:
        for form in (kind, kind.value):  # Ray's client gives either
            text = ended(None, form, TRACE)
            assert "OSError: no space left" in text and "\n" not in text
            assert (kind in named) == (text != ended(None, None, TRACE))
    assert "Ray gives no reason" in ended(None, None, None)


@pytest.mark.parametrize(("code", "name"), [(-9, "SIGKILL"), (137, "SIGKILL"), (-15, "SIGTERM"), (139, "SIGSEGV")])
def test_a_killed_job_is_said_to_be_killed(code: int, name: str) -> None:
    assert f"killed by {name}" in ended(code)
    assert ("memory" in ended(code)) == (name == "SIGKILL")


def test_ordinary_endings() -> None:
    assert ended(0, status="SUCCEEDED") == "succeeded, exit code 0"
    assert ended(None, status="STOPPED") == "stopped, exit code none"
    assert ended(75) == "failed, exit code 75; it was interrupted; submit it again to continue"
    for code in (1, 2, 255):
        assert ended(code) == f"failed, exit code {code}; its log says why"


def test_a_waiting_job() -> None:
    assert "job has not started after 20 s" in describe_waiting("job", 20.4)
