"""SIGTERM as a wish to stop after the step, agreed on by all workers."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from pipeline.workers.worker import Worker

INTERRUPTED_EXIT_CODE = 75  # "temporary failure" in sysexits.h: run the same command again and it goes on


@contextmanager
def sigterm_sets(event: threading.Event) -> Iterator[None]:
    """While SIGTERM sets an event instead of ending the process. Signals reach the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda _number, _frame: event.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class StopRequest:
    """Whether any worker was told to stop. Asking the others travels while the step computes."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._flag = torch.zeros(1)
        self._work: dist.Work | None = None

    def ask(self) -> None:
        """Begins to ask the other workers; before a step."""
        self._flag.fill_(float(self._worker.stop.is_set()))
        self._work = dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, group=self._worker.control, async_op=True)

    def answer(self) -> bool:
        """What they said; after the step, the same on every worker."""
        assert self._work is not None
        self._work.wait()
        return bool(self._flag.item())
