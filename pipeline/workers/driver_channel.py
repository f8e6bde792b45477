"""Messages between a driver and its Ray workers: log lines and errors to the driver, stop requests to the workers."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from manygate_guard import PACKAGES
from pipeline.console import configure_logging
from pipeline.log_records import Document, to_document, to_record
from pipeline.workers.stop import Stop, StopSignal, on_sigterm

POLL_S = 0.3


@dataclass(frozen=True)
class GroupReport:
    """What the workers of the current start have reported."""

    has_saved: bool  # whether this start or an earlier one of the same command has saved a checkpoint
    refusal: str | None  # the message of a UserError, which no restart can fix


@dataclass(frozen=True)
class News:
    """What the driver collects several times per second."""

    lines: list[Document]  # new log lines
    nodes: dict[int, str]  # rank -> id of its machine


@ray.remote(num_cpus=0)
class DriverChannel:
    """Keeps messages until the other side fetches them. They are few: one per log line of the first worker."""

    def __init__(self) -> None:
        self._lines: list[Document] = []
        self._attempt = 0
        self._stop = Stop.NONE
        self._nodes: dict[int, str] = {}
        self._has_saved = False
        self._refusal: str | None = None

    def begin(self, attempt: int) -> None:
        """Begins a start of the workers. Messages of earlier ones, which may still run, are ignored from now on."""
        self._attempt, self._stop, self._nodes = attempt, Stop.NONE, {}

    def join(self, attempt: int, rank: int, node: str) -> None:
        """A worker of a start is up."""
        if attempt == self._attempt:
            self._nodes[rank] = node

    def saved(self) -> None:
        self._has_saved = True

    def refuse(self, attempt: int, message: str) -> None:
        if attempt == self._attempt:
            self._refusal = self._refusal or message

    def report(self) -> GroupReport:
        return GroupReport(self._has_saved, self._refusal)

    def add_line(self, line: Document) -> None:
        self._lines.append(line)

    def collect(self, stop: Stop) -> News:
        """Passes a stop request on to the workers, and returns what is new."""
        self._stop = max(self._stop, stop)
        lines, self._lines = self._lines, []
        return News(lines, dict(self._nodes))

    def stop_level(self, attempt: int) -> Stop:
        return self._stop if attempt == self._attempt else Stop.NONE


def relay_line(line: Document) -> None:
    """Logs a worker's line in the driver, in the driver's format."""
    record = to_record(line)
    logging.getLogger(record.name).handle(record)


class _ToChannel(logging.Handler):
    def __init__(self, channel: ActorHandle) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        self._channel.add_line.remote(to_document(record))  # without waiting for the channel


def join_channel(channel: ActorHandle, attempt: int, rank: int, stop: StopSignal) -> None:
    """In a worker: sends Manygate's log lines to the driver, and passes the driver's stop requests on to `stop`.

    Log lines of other libraries stay in Ray's log files.
    """
    ray.get(channel.join.remote(attempt, rank, ray.get_runtime_context().get_node_id()))
    configure_logging()
    handler = _ToChannel(channel)
    for name in PACKAGES:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False

    def watch() -> None:
        while not stop.wait(POLL_S):
            stop.request(ray.get(channel.stop_level.remote(attempt)))

    threading.Thread(target=watch, name="manygate-stop", daemon=True).start()


Watch = Callable[[Mapping[int, str]], Stop]
"""From the rank of each worker that is up, and the id of its machine, to how soon the workers should stop."""


class Driver:
    """The driver's side of the channel."""

    def __init__(self, channel: ActorHandle, stop: StopSignal) -> None:
        self.channel = channel
        self.stop = stop  # of this process: set by a SIGTERM
        self._watch: Watch | None = None
        self._relaying = threading.Lock()  # held by `relay`, so that nothing of it is mixed with another start
        self._nodes: dict[int, str] = {}

    def begin(self, attempt: int, watch: Watch) -> None:
        """Begins a start of the workers; `watch` is called several times per second until it has ended."""
        with self._relaying:
            ray.get(self.channel.begin.remote(attempt))
            self._nodes = {}
            self._watch = watch

    def end(self) -> GroupReport:
        """Ends a start of the workers."""
        with self._relaying:
            self._watch = None
        report: GroupReport = ray.get(self.channel.report.remote())  # type: ignore[assignment]
        return report

    def relay(self) -> None:
        """Sends the workers the most urgent stop request, and logs their new lines."""
        with self._relaying:
            wanted = self._watch(self._nodes) if self._watch is not None else Stop.NONE
            level = max(wanted, self.stop.level)
            news: News = ray.get(self.channel.collect.remote(level))  # type: ignore[assignment]
            self._nodes = news.nodes
        for line in news.lines:
            relay_line(line)


@contextmanager
def open_channel(stop: StopSignal) -> Iterator[Driver]:
    """In the driver: while the block runs, logs the workers' lines and passes stop requests on to the workers.

    The channel runs on the driver's machine: it must outlive every machine that the run can lose.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    driver = Driver(DriverChannel.options(scheduling_strategy=here).remote(), stop)  # type: ignore[attr-defined]
    ended = threading.Event()

    def relay() -> None:
        while not ended.wait(POLL_S):
            driver.relay()
        driver.relay()

    thread = threading.Thread(target=relay, name="manygate-driver-channel", daemon=True)
    thread.start()
    try:
        with on_sigterm(stop.request):
            yield driver
    finally:
        ended.set()
        thread.join()
        ray.kill(driver.channel)
