"""Ends a worker that makes no progress, with a message about where it waits and which workers do not answer."""

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

import torch.distributed as dist

from pipeline.workers.worker import Worker

log = logging.getLogger(__name__)

HANG_EXIT_CODE = 76
ROLL_CALL = timedelta(seconds=10)
FLUSH_S = 2  # time for the message to leave this process


@contextmanager
def watched(worker: Worker, limit_s: float | None) -> Iterator[None]:
    """While the block runs, ends this process when the worker's heartbeat is older than `limit_s` seconds. Collective.

    A single worker is not watched: no other worker waits for it, and a debugger may have stopped it.
    """
    if limit_s is None or worker.workers == 1:
        yield
        return
    group = dist.new_group(backend="gloo")
    ended = threading.Event()
    watched_thread = threading.get_ident()

    def watch() -> None:
        while not ended.wait(min(limit_s / 5, 5)):
            if worker.heartbeat.age_s() > limit_s:
                give_up(worker, limit_s, group, watched_thread)

    thread = threading.Thread(target=watch, name="manygate-watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()  # otherwise its group may be freed while the interpreter shuts down, which aborts the process


def give_up(worker: Worker, limit_s: float, group: dist.ProcessGroup, thread: int) -> None:
    """Logs where this worker waits and which workers do not answer, and ends the process."""
    frame = sys._current_frames().get(thread)
    log.error(
        "Worker %d of %d has made no progress for %g s (training.hang_timeout_s): %s, in %s. %s",
        worker.rank,
        worker.workers,
        limit_s,
        worker.heartbeat.what,
        waiting_in(frame),
        roll_call(group),
    )
    if frame is not None:
        log.error("Its stack:\n%s", "".join(traceback.format_stack(frame)))
    time.sleep(FLUSH_S)
    os._exit(HANG_EXIT_CODE)


def roll_call(group: dist.ProcessGroup) -> str:
    """Reports which workers do not answer. Workers that answer have reached this point in their own watchdogs."""
    report = ["Worker 0 does not answer."]

    def call() -> None:
        try:
            dist.monitored_barrier(group, timeout=ROLL_CALL, wait_all_ranks=True)
            report[0] = "All workers answer, so one of them must be waiting for something different."
        except RuntimeError as error:
            report[0] = f"Roll call: {str(error).splitlines()[0]}"

    # In a thread: every worker but the first waits for the first one without a limit.
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(ROLL_CALL.total_seconds() + FLUSH_S)
    return report[0]


def waiting_in(frame: FrameType | None) -> str:
    """The collective that a thread is in, or else its innermost function."""
    innermost = frame
    while frame is not None:
        module, name = frame.f_globals.get("__name__", ""), frame.f_code.co_qualname
        if module == "torch.distributed.distributed_c10d" or module.startswith("torchrec.distributed"):
            return f"the collective {name} ({module})"
        if name == "_engine_run_backward":
            return "the backward pass (all-reduce of dense gradients, all-to-all of embedding gradients)"
        if name in ("StopRequest.wait", "Work.wait"):
            return "the collective all_reduce of stop requests"
        frame = frame.f_back
    return innermost.f_code.co_qualname if innermost is not None else "no code"
