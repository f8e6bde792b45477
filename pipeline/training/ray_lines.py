"""Log lines from Ray workers to the terminal of the driver, as they were written there."""

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ray.util.queue import Empty, Queue

from pipeline.console import OURS, configure_logging


class _Forward(logging.Handler):
    """Sends lines into a queue, never waiting for it."""

    def __init__(self, lines: Queue) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        # Directly to the queue's actor, without waiting for its answer as put() would.
        self._lines.actor.put_nowait.remote(self.format(record))


def forward_lines(lines: Queue) -> None:
    """In a worker: what Manygate logs goes to the driver, what other libraries log stays in Ray's log files."""
    configure_logging()
    handler = _Forward(lines)
    handler.setFormatter(logging.getLogger().handlers[0].formatter)
    for name in OURS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False


@contextmanager
def printed_lines() -> Iterator[Queue]:
    """In the driver: a queue whose lines are printed on stderr until the block ends."""
    lines = Queue(actor_options={"num_cpus": 0})
    ended = threading.Event()

    def print_lines() -> None:
        while True:
            is_last_look = ended.is_set()
            try:
                while True:
                    print(lines.get(timeout=0.2), file=sys.stderr, flush=True)
            except Empty:
                if is_last_look:
                    return

    thread = threading.Thread(target=print_lines, name="manygate-lines", daemon=True)
    thread.start()
    try:
        yield lines
    finally:
        ended.set()
        thread.join()
        lines.shutdown()
