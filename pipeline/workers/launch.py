"""Launchers: this process alone, a process of torchrun, or Ray's workers (`launch_ray.py`)."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist

from pipeline.config.cluster import ClusterConfig
from pipeline.config.experiment import Experiment
from pipeline.config.lanes import workers_mistake
from pipeline.config.paths import with_absolute_paths
from pipeline.errors import UserError
from pipeline.workers import network
from pipeline.workers.interface import own_address
from pipeline.workers.stop import StopSignal
from pipeline.workers.worker import Worker, backend, choose_device, this_worker
from pipeline.workers.worker_count import Workers, check_workers, in_words

Result = TypeVar("Result")
BodyResult = TypeVar("BodyResult", covariant=True)

DEFAULT_CLUSTER = ClusterConfig()


class Body(Protocol[BodyResult]):
    """The function that a worker of a run calls. Importable, with picklable arguments, because Ray sends it."""

    def __call__(self, worker: Worker, experiment: Experiment) -> BodyResult: ...


@dataclass(frozen=True)
class Launcher:
    """How the workers of a run are started."""

    name: str  # local or ray
    workers: Workers
    connect: Callable[[], None]  # connects this process to Ray; called only if Ray starts the workers
    stop: StopSignal = field(default_factory=StopSignal)
    """Set by a SIGTERM while Ray's workers run. They finish what cannot be interrupted, and the caller stops then."""

    def check(self, lanes: int) -> None:
        """Checks the number of workers against the lanes of the feature table, before anything is started.

        Raises:
            UserError: the launcher cannot start that many workers, or they do not divide the lanes.
        """
        if not is_torchrun():
            check_workers(self.name, self.workers, lanes)
            return
        size = int(os.environ["WORLD_SIZE"])
        if self.workers not in (None, size):
            requested = in_words(self.workers)
            raise UserError(f"--workers is {requested}, but torchrun started {size} processes: omit --workers.")
        mistake = workers_mistake(lanes, size, size)
        if mistake is not None:
            raise UserError(f"torchrun started {size} processes (--nproc-per-node on each machine): {mistake}.")

    def run(self, body: Body[Result], experiment: Experiment) -> Result:
        """Runs a body on every worker and returns the first worker's result.

        Under torchrun, the processes that it has started are the workers, whatever the launcher's name.

        Raises:
            UserError: as `check` and the body do.
        """
        self.check(experiment.table.lanes)
        absolute, device = with_absolute_paths(experiment), experiment.training.device
        prepared = partial(body, experiment=absolute)
        if self.name == "local" or is_torchrun():
            return run_without_ray(prepared, device, experiment.cluster)
        self.connect()
        from pipeline.workers.launch_ray import launch_ray

        return launch_ray(prepared, self.workers or 1, absolute, self.stop)


def is_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def run_without_ray(body: Callable[[Worker], Result], device: str, cluster: ClusterConfig = DEFAULT_CLUSTER) -> Result:
    """Runs a body in this process, which is the only worker or one of those that torchrun has started."""
    if is_torchrun():
        return _run_under_torchrun(body, device, cluster)
    return _run_here(body, device, cluster)


def _run_here(body: Callable[[Worker], Result], device: str, cluster: ClusterConfig) -> Result:
    device = choose_device(device)
    # A store in memory instead of a port: nothing listens, and nothing times out while a debugger stops the process.
    dist.init_process_group(backend(device), store=dist.HashStore(), rank=0, world_size=1)
    try:
        return body(this_worker(device, 0, 1, 0, cluster))
    finally:
        dist.destroy_process_group()


def _run_under_torchrun(body: Callable[[Worker], Result], device: str, cluster: ClusterConfig) -> Result:
    device = choose_device(device)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    bound = torch.device("cuda", local_rank) if device == "cuda" else None
    # On a single machine nothing is reachable from outside.
    address = "127.0.0.1" if size == local_size else own_address(os.environ["MASTER_ADDR"])
    store, _, _ = next(dist.rendezvous("env://"))
    network.check_reachable(dist.PrefixStore("network", store), rank, size, address)
    network.use_interface(address)
    dist.init_process_group(backend(device), store=store, rank=rank, world_size=size, device_id=bound)
    try:
        return body(this_worker(device, rank, size, local_rank, cluster))
    finally:
        dist.destroy_process_group()
