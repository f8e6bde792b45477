"""The checkpoint that a training run resumes from."""

from dataclasses import replace

import pytest

from pipeline.checkpoint.choice import CheckpointChoice
from pipeline.checkpoint.resume import choice_of_attempt
from tests.workers import one_worker


@pytest.mark.parametrize(
    ("attempt", "has_saved", "resume", "choice"),
    [
        (0, False, "never", "never"),
        (0, False, "/a/path", "/a/path"),
        (1, False, "/a/path", "/a/path"),
        (1, True, "/a/path", "auto"),
        (1, False, "never", "auto"),
        (2, True, "auto", "auto"),
    ],
)
def test_workers_started_again_resume_from_what_their_run_has_saved(
    attempt: int, has_saved: bool, resume: str, choice: str
) -> None:
    with one_worker() as worker:
        again = replace(worker, attempt=attempt, has_saved=has_saved)
        assert choice_of_attempt(again, CheckpointChoice.parse(resume)) == CheckpointChoice.parse(choice)
