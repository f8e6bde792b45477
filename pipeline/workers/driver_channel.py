"""What a driver and its Ray workers tell each other: log lines and mistakes one way, the wish to stop the other."""

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.console import OURS, configure_logging
from pipeline.workers.stop import sigterm_sets

POLL_S = 0.3


@ray.remote(num_cpus=0)
class DriverChannel:
    """Holds what is on its way. Lines are few: one a log line of the first worker."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._is_stopping = False
        self._starts = 0
        self._has_saved = False
        self._refusal: str | None = None

    def begin(self) -> tuple[int, bool, str | None]:
        """Counts a start of the workers: how many there were before, whether one of them got to save a checkpoint, and
        the user's mistake that ended one of them."""
        self._starts += 1
        if self._starts > 1 and self._refusal is None:
            self._lines.append(f"The workers were started again (restart {self._starts - 1}).")
        return self._starts - 1, self._has_saved, self._refusal

    def saved(self) -> None:
        self._has_saved = True

    def refuse(self, attempt: int, message: str) -> None:
        """Takes a user's mistake, which no restart mends. One of an earlier start, cut off since, says nothing."""
        if attempt == self._starts - 1:
            self._refusal = self._refusal or message

    def refusal(self) -> str | None:
        return self._refusal

    def say(self, line: str) -> None:
        self._lines.append(line)

    def collect(self, stop: bool) -> list[str]:
        """Hands out the lines, and takes the driver's wish to stop."""
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
        self._channel.say.remote(self.format(record))  # no worker waits for its lines


def join_channel(channel: ActorHandle, stop: threading.Event) -> None:
    """In a worker: sends Manygate's log lines to the driver, and sets `stop` when the driver was told to stop.

    What other libraries log stays in Ray's log files.
    """
    configure_logging()
    handler = _ToChannel(channel)
    handler.setFormatter(logging.getLogger().handlers[0].formatter)
    for name in OURS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False

    def watch() -> None:
        while not stop.wait(POLL_S):
            if ray.get(channel.is_stopping.remote()):
                stop.set()

    threading.Thread(target=watch, name="manygate-stop", daemon=True).start()


@contextmanager
def open_channel() -> Iterator[ActorHandle]:
    """In the driver: prints the workers' lines on stderr, and turns a SIGTERM into their stop, while the block runs."""
    # Beside the driver: the channel must outlive every machine that the run can do without.
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
