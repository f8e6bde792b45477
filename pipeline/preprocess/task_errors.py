"""Unexpected errors of tasks: the user reads one sentence about each, and with --debug also its traceback."""

import traceback
from contextvars import ContextVar
from dataclasses import dataclass

from pipeline.errors import UserError, one_line

LAST_COLUMN: ContextVar[str | None] = ContextVar("LAST_COLUMN", default=None)
"""The column that the running task has used last."""


class TaskTraceback(Exception):  # noqa: N818 - a cause that is only shown
    """The traceback of an error in the process of a task, as text: Ray would mix it into the error's message."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@dataclass(frozen=True)
class Unexpected:
    """An error that no code expects."""

    summary: str
    traceback: str
    column: str | None

    @classmethod
    def of(cls, error: Exception) -> "Unexpected":
        message = one_line(error)
        summary = f"{type(error).__name__}: {message}" if message else type(error).__name__
        return cls(summary, "".join(traceback.format_exception(error)), LAST_COLUMN.get())

    def in_words(self, task: str) -> UserError:
        """The error for the user; `task` says what the task was about."""
        column = f", after it used the column {self.column!r}" if self.column is not None else ""
        error = UserError(
            f"{task} failed unexpectedly{column}: {self.summary}. Complete partitions are kept. Run the command again "
            "with --debug to see the traceback, and report it if the log is as it should be."
        )
        error.__cause__ = TaskTraceback(self.traceback)
        return error
