"""Requests to stop a run: for good, or to start its workers again."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum

INTERRUPTED_EXIT_CODE = 75  # "temporary failure" in sysexits.h: the same command, run again, resumes


class InterruptedRunError(Exception):
    """A SIGTERM arrived while no workers ran, or they finished what they did."""


class Stop(IntEnum):
    """How soon a run is asked to stop. The larger value wins."""

    NONE = 0
    AT_SAVE = 1  # after the next checkpoint that is due, to continue on more workers
    AFTER_STEP = 2  # after the current step, with a checkpoint, to continue on other machines
    FOR_GOOD = 3  # after the current step, with a checkpoint: a SIGTERM


class StopSignal:
    """A request to stop, set by a signal or another thread and read by the trainer."""

    def __init__(self) -> None:
        self.level = Stop.NONE
        self.is_obeyed = False  # whether the run has ended because of it
        self._is_for_good = threading.Event()

    def request(self, level: Stop = Stop.FOR_GOOD) -> None:
        self.level = max(self.level, level)
        if level == Stop.FOR_GOOD:
            self._is_for_good.set()

    @property
    def is_for_good(self) -> bool:
        return self._is_for_good.is_set()

    def check(self) -> None:
        """Raises InterruptedRunError if there is a request to stop for good."""
        if self.is_for_good:
            raise InterruptedRunError

    def wait(self, seconds: float) -> bool:
        """Waits for a request to stop for good, for some seconds at most; returns whether there is one."""
        return self._is_for_good.wait(seconds)


@contextmanager
def on_sigterm(action: Callable[[], None]) -> Iterator[None]:
    """While the block runs, SIGTERM calls a function instead of ending the process.

    Does nothing outside the main thread, the only one that receives signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda _number, _frame: action())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def exit_on_sigterm() -> Iterator[StopSignal]:
    """While the block runs, SIGTERM raises SystemExit. The request to stop that the block gets remembers it."""
    stop = StopSignal()

    def leave() -> None:
        stop.request()
        sys.exit(signal.SIGTERM)

    with on_sigterm(leave):
        yield stop
