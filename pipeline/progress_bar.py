"""Progress of a pass: a bar on a terminal, otherwise a log line at intervals."""

import logging
import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

from pipeline.job_progress import JobProgress, reported

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 15.0


class ProgressBar:
    """Counts the rows of one pass; a context manager."""

    def __init__(self, what: str, rows: int, is_shown: bool = True) -> None:
        """Prepares to count.

        Args:
            what: name of the pass.
            rows: of the whole pass.
            is_shown: on several workers, which pass over parts of the same rows, only the first shows progress.
        """
        self._what = what
        self._rows = rows
        self._done = 0
        self._start = self._last_line = time.monotonic()
        self._is_shown = is_shown
        has_bar = is_shown and sys.stderr.isatty()
        self._bar = tqdm(total=rows, desc=what, unit=" rows", unit_scale=True) if has_bar else None

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        if error is None and self._is_shown:
            seconds = time.monotonic() - self._start
            logger.info("%s: %s rows in %.1f s", self._what, f"{self._done:,}", seconds, extra=self._reported())

    def add(self, rows: int) -> None:
        """Adds the rows of a finished part, padding included."""
        rows = min(rows, self._rows - self._done)
        self._done += rows
        if self._bar is not None:
            self._bar.update(rows)
        elif self._is_shown and time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            done, rows_of_pass = f"{self._done:,}", f"{self._rows:,}"
            logger.info("%s: %s of %s rows", self._what, done, rows_of_pass, extra=self._reported())

    def _reported(self) -> dict[str, Any]:
        seconds = time.monotonic() - self._start
        eta = (self._rows - self._done) * seconds / self._done if self._done else None
        return reported(JobProgress(stage=self._what, rows=self._done, total_rows=self._rows, eta_s=eta))
