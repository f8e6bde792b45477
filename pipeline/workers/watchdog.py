"""A worker that makes no progress ends itself, with a message that says where it waits and for whom."""

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
FLUSH_S = 2  # for the message to leave this process


@contextmanager
def watched(worker: Worker, limit_s: float | None) -> Iterator[None]:
    """While the block runs, ends this process when the worker's heartbeat is older than `limit_s` seconds. Collective.

    A worker that is alone is not watched: nobody waits for it, and a debugger may hold it.
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
        thread.join()  # else its group may be freed while the interpreter shuts down, which aborts the process


def give_up(worker: Worker, limit_s: float, group: dist.ProcessGroup, thread: int) -> None:
    """Says what this worker waits in, asks who else still answers, and ends the process."""
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
        log.error("Where it stood:\n%s", "".join(traceback.format_stack(frame)))
    time.sleep(FLUSH_S)
    os._exit(HANG_EXIT_CODE)


def roll_call(group: dist.ProcessGroup) -> str:
    """Which workers do not answer. Those that do have come to the same point in their own watchdogs."""
    answer = ["Worker 0 does not answer."]

    def ask() -> None:
        try:
            dist.monitored_barrier(group, timeout=ROLL_CALL, wait_all_ranks=True)
            answer[0] = "All workers answer, so one of them is held up by something else than the others."
        except RuntimeError as error:
            answer[0] = f"Asked who is there: {str(error).splitlines()[0]}"

    # In a thread: a worker other than the first waits for the first one without a limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ROLL_CALL.total_seconds() + FLUSH_S)
    return answer[0]


def waiting_in(frame: FrameType | None) -> str:
    """The collective, or else the function, that a thread is in."""
    innermost = frame
    while frame is not None:
        module, name = frame.f_globals.get("__name__", ""), frame.f_code.co_qualname
        if module == "torch.distributed.distributed_c10d" or module.startswith("torchrec.distributed"):
            return f"the collective {name} ({module})"
        if name == "_engine_run_backward":
            return "the backward pass (all-reduce of dense gradients, all-to-all of embedding gradients)"
        if name in ("StopRequest.answer", "Work.wait"):
            return "the collective all_reduce that asks whether to stop"
        frame = frame.f_back
    return innermost.f_code.co_qualname if innermost is not None else "no code"
