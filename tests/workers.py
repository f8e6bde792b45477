"""Processes for tests, forked from a process that has imported everything, so that tests spend no time on imports."""

import multiprocessing as mp
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch.distributed as dist

from pipeline.config.cluster import ClusterConfig
from pipeline.workers.worker import Worker, this_worker


def fork(body: Callable[..., Any], *args: Any, output: Path | None = None) -> ForkServerProcess:
    """Starts a function in a new process, which takes 0.1 s. The exit code is 0, or that of the function's `sys.exit`.

    The process has the environment variables and the working folder of this one, and ends with it at the latest.

    Args:
        body: importable, with picklable arguments.
        output: file for the output of the process.
    """
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.runs"])
    process = context.Process(target=_begin, args=(dict(os.environ), str(Path.cwd()), output, body, args), daemon=True)
    process.start()
    return process


def _begin(
    environment: dict[str, str], folder: str, output: Path | None, body: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if output is not None:
        with output.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    body(*args)


class WorkerPool:
    """Gloo workers that keep running. `run` calls a function on every worker, with the worker as first argument."""

    def __init__(self, workers: int) -> None:
        store = tempfile.mkdtemp()
        self._pipes: list[Connection] = []
        self._processes: list[ForkServerProcess] = []
        for rank in range(workers):
            ours, theirs = mp.Pipe()
            self._processes.append(fork(_serve, rank, workers, store, theirs))
            theirs.close()
            self._pipes.append(ours)

    def run(self, body: Callable[..., Any], *args: Any, timeout: float = 120) -> list[Any]:
        """Results by rank. An error of any worker is raised; workers that wait for it are lost with the pool."""
        self.start(body, *args)
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

    def start(self, body: Callable[..., Any], *args: Any) -> None:
        """Calls a function without waiting for it, for workers that are killed meanwhile."""
        for pipe in self._pipes:
            pipe.send((body, args))

    def is_alive(self) -> bool:
        return all(process.is_alive() for process in self._processes)

    def close(self) -> None:
        """Kills the workers, whatever they are doing."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()


def _serve(rank: int, workers: int, store: str, pipe: Connection) -> None:
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(Path(store) / "store"), workers), rank=rank, world_size=workers
    )
    worker = this_worker("cpu", rank, workers, rank, ClusterConfig())
    while True:
        body, args = pipe.recv()
        try:
            pipe.send((body(worker, *args), None, None))
        except Exception as error:  # noqa: BLE001 - sent to the test
            pipe.send((None, error, traceback.format_exc()))


@contextmanager
def one_worker() -> Iterator[Worker]:
    """This process as the only worker, with as many threads as one of two workers: results are equal bit by bit."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield this_worker("cpu", 0, 1, 0, ClusterConfig(cpus_per_worker=1))
    finally:
        dist.destroy_process_group()
