"""Workers for tests: gloo processes that stay up, so that a test pays for its work and not for imports."""

import multiprocessing as mp
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch.distributed as dist

from pipeline.workers.worker import Worker, this_worker


class WorkerPool:
    """`run` calls a function on every worker with that worker as first argument."""

    def __init__(self, workers: int) -> None:
        self._store = tempfile.mkdtemp()
        context = mp.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, workers, self._store, theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, body: Callable[..., Any], *args: Any, timeout: float = 120) -> list[Any]:
        """Results by rank. An error of any worker is raised; workers that wait for it are given up with the pool."""
        for pipe in self._pipes:
            pipe.send((body, args))
        results = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(timeout):
                raise TimeoutError(f"worker {rank} did not answer in {timeout} s")
            result, error, trace = pipe.recv()
            results.append((result, error, trace))
        for _, error, trace in results:
            if error is not None:
                error.add_note(trace)
                raise error
        return [result for result, _, _ in results]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


def _serve(rank: int, workers: int, store: str, pipe: Connection) -> None:
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(Path(store) / "store"), workers), rank=rank, world_size=workers
    )
    worker = this_worker("cpu", rank, workers, rank, workers)
    while True:
        body, args = pipe.recv()
        try:
            pipe.send((body(worker, *args), None, None))
        except Exception as error:  # noqa: BLE001 - carried to the test
            pipe.send((None, error, traceback.format_exc()))


@contextmanager
def one_worker() -> Iterator[Worker]:
    """This process as the only worker, with as many threads as one of two would have: results compare bit by bit."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield this_worker("cpu", 0, 1, 0, os.cpu_count() or 1)
    finally:
        dist.destroy_process_group()
