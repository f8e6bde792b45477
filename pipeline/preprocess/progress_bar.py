"""Progress of a pass: a bar on a terminal, otherwise a log line at intervals."""

import logging
import sys
import time
from types import TracebackType

from tqdm import tqdm

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 15.0


class ProgressBar:
    """Counts the rows of one pass; a context manager."""

    def __init__(self, what: str, rows: int) -> None:
        self._what = what
        self._rows = rows
        self._done = 0
        self._start = self._last_line = time.monotonic()
        self._bar = tqdm(total=rows, desc=what, unit=" rows", unit_scale=True) if sys.stderr.isatty() else None

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        if error is None:
            seconds = time.monotonic() - self._start
            logger.info("%s: %s rows in %.1f s", self._what, f"{self._done:,}", seconds)

    def add(self, rows: int) -> None:
        """Adds the rows of a finished task."""
        self._done += rows
        if self._bar is not None:
            self._bar.update(rows)
        elif time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            logger.info("%s: %s of %s rows", self._what, f"{self._done:,}", f"{self._rows:,}")
