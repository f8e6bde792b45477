"""Reads ahead in a thread, so that a step does not wait for its batch."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

DEPTH = 4  # batches kept ready

_END = object()

Prefetched = TypeVar("Prefetched")


def prefetch(
    batches: Iterator[Prefetched], prepare: Callable[[Prefetched], Prefetched] = lambda batch: batch
) -> Generator[Prefetched, None, None]:
    """Yields the same batches in the same order, made in a background thread.

    Arrow and numpy release the interpreter lock in the heavy parts. An error of the reader is raised here. Closing the
    iterator ends the thread.

    Args:
        batches: an iterator that nothing else uses.
        prepare: applied to each batch in the thread, such as pinning its memory.
    """
    ready: queue.Queue = queue.Queue(maxsize=DEPTH)
    stop = threading.Event()

    def put(item: object) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def read() -> None:
        try:
            for batch in batches:
                if not put(prepare(batch)):
                    return
            put(_END)
        except BaseException as error:  # noqa: BLE001 - raised again in the consumer
            put(error)

    thread = threading.Thread(target=read, name="manygate-prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not _END:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
