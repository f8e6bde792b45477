"""SIGTERM as a request to stop after the current step, agreed on by all workers."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from pipeline.workers.worker import Worker

INTERRUPTED_EXIT_CODE = 75  # "temporary failure" in sysexits.h: the same command, run again, resumes


@contextmanager
def sigterm_sets(event: threading.Event) -> Iterator[None]:
    """While the block runs, SIGTERM sets an event instead of ending the process.

    Does nothing outside the main thread, the only one that receives signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda _number, _frame: event.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class StopRequest:
    """Whether any worker has received a stop request. The all-reduce overlaps with the step."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._flag = torch.zeros(1)
        self._work: dist.Work | None = None

    def start(self) -> None:
        """Starts the all-reduce; called before a step."""
        self._flag.fill_(float(self._worker.stop.is_set()))
        self._work = dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, group=self._worker.control, async_op=True)

    def wait(self) -> bool:
        """Waits for the result, the same on every worker; called after the step."""
        assert self._work is not None
        self._work.wait()
        return bool(self._flag.item())
