"""A call in a child process, which shows how the process ends if the call crashes it."""

import multiprocessing
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

_FAULTS = {signal.SIGABRT, signal.SIGSEGV, signal.SIGILL, signal.SIGFPE}
"""Signals of a fault in the process itself. A SIGTERM is a request, and a SIGBUS may be full shared memory."""


@dataclass(frozen=True)
class Crash:
    """The end of a process that has not returned from its call."""

    code: int  # as of `subprocess`: minus the number of the signal, or the exit code

    @property
    def is_killed(self) -> bool:
        """Whether it was killed from outside, as the kernel does when memory runs out; no program does so to itself."""
        return self.code == -signal.SIGKILL

    @property
    def is_fault(self) -> bool:
        return -self.code in _FAULTS

    def __str__(self) -> str:
        return signal.Signals(-self.code).name if self.code < 0 else f"exit code {self.code}"


KILLED = Crash(-signal.SIGKILL)


def call_in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a new process and returns its result, or a `Crash`; raises what the function raises."""
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that other threads hold
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(theirs, function, arguments), daemon=True)
    child.start()
    theirs.close()
    try:
        result, error = ours.recv()
    except EOFError:
        child.join()
        assert child.exitcode is not None, "it has ended"
        return Crash(child.exitcode)
    child.join()
    if error is not None:
        raise error
    return result


def _answer(pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        pipe.send((function(*arguments), None))
    except Exception as error:  # noqa: BLE001 - raised by `call_in_child`
        pipe.send((None, error))
