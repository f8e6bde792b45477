"""SIGTERM between the stages of a pipeline, and in stages that do not handle it themselves."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """While the block runs, SIGTERM raises SystemExit with its number, as Ray's own handler does in a driver."""

    def leave(number: int, _frame: FrameType | None) -> None:
        sys.exit(signal.Signals(number))

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
