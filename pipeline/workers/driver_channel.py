"""Messages between a driver and its Ray workers: log lines and errors to the driver, a stop request to the workers."""

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from manygate_guard import PACKAGES
from pipeline.console import configure_logging
from pipeline.workers.stop import sigterm_sets

POLL_S = 0.3


@ray.remote(num_cpus=0)
class DriverChannel:
    """Keeps messages until the other side fetches them. They are few: one per log line of the first worker."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._is_stopping = False
        self._starts = 0
        self._has_saved = False
        self._refusal: str | None = None

    def begin(self) -> tuple[int, bool, str | None]:
        """Counts a start of the workers.

        Returns:
            The number of earlier starts, whether a checkpoint was saved after one of them, and the message of the
            UserError that ended one of them.
        """
        self._starts += 1
        if self._starts > 1 and self._refusal is None:
            self._lines.append(f"The workers were started again (restart {self._starts - 1}).")
        return self._starts - 1, self._has_saved, self._refusal

    def saved(self) -> None:
        self._has_saved = True

    def refuse(self, attempt: int, message: str) -> None:
        """Records the message of a UserError, which no restart can fix. Messages of earlier starts are ignored."""
        if attempt == self._starts - 1:
            self._refusal = self._refusal or message

    def refusal(self) -> str | None:
        return self._refusal

    def add_line(self, line: str) -> None:
        self._lines.append(line)

    def collect(self, stop: bool) -> list[str]:
        """Returns the new lines, and records whether the driver requests a stop."""
        self._is_stopping = self._is_stopping or stop
        lines, self._lines = self._lines, []
        return lines

    def is_stopping(self) -> bool:
        return self._is_stopping


class _ToChannel(logging.Handler):
    def __init__(self, channel: ActorHandle) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        self._channel.add_line.remote(self.format(record))  # without waiting for the channel


def join_channel(channel: ActorHandle, stop: threading.Event) -> None:
    """In a worker: sends Manygate's log lines to the driver, and sets `stop` when the driver has received a SIGTERM.

    Log lines of other libraries stay in Ray's log files.
    """
    configure_logging()
    handler = _ToChannel(channel)
    handler.setFormatter(logging.getLogger().handlers[0].formatter)
    for name in PACKAGES:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False

    def watch() -> None:
        while not stop.wait(POLL_S):
            if ray.get(channel.is_stopping.remote()):
                stop.set()

    threading.Thread(target=watch, name="manygate-stop", daemon=True).start()


@contextmanager
def open_channel() -> Iterator[ActorHandle]:
    """In the driver: while the block runs, prints the workers' lines on stderr and passes a SIGTERM on to the workers.

    The channel runs on the driver's machine: it must outlive every machine that the run can lose.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    channel = DriverChannel.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    ended, stop = threading.Event(), threading.Event()

    def relay() -> None:
        while True:
            is_last = ended.wait(POLL_S)
            for line in ray.get(channel.collect.remote(stop.is_set())):
                print(line, file=sys.stderr, flush=True)
            if is_last:
                return

    thread = threading.Thread(target=relay, name="manygate-driver-channel", daemon=True)
    thread.start()
    try:
        with sigterm_sets(stop):
            yield channel
    finally:
        ended.set()
        thread.join()
        ray.kill(channel)
