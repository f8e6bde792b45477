"""Launchers: this process alone, a process of torchrun, or Ray's workers (`launch_ray.py`)."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist

from pipeline import storage
from pipeline.config.experiment import Experiment
from pipeline.config.paths import with_absolute_paths
from pipeline.errors import UserError
from pipeline.workers.worker import Worker, backend, choose_device, this_worker

Result = TypeVar("Result")
BodyResult = TypeVar("BodyResult", covariant=True)

Workers = int | tuple[int, int] | None
"""A number of workers; a range, of which Ray uses as many as are available; or None, for one worker or torchrun's."""


class Body(Protocol[BodyResult]):
    """The function that a worker of a run calls. Importable, with picklable arguments, because Ray sends it."""

    def __call__(self, worker: Worker, experiment: Experiment) -> BodyResult: ...


@dataclass(frozen=True)
class Launcher:
    """How the workers of a run are started."""

    name: str  # local or ray
    workers: Workers
    connect: Callable[[], None]  # connects this process to Ray; called only if Ray starts the workers

    def run(self, body: Body[Result], experiment: Experiment) -> Result:
        """Runs a body on every worker and returns the first worker's result.

        Raises:
            UserError: as `launch` and the body do.
        """
        if self.name == "ray" and not is_torchrun():
            self.connect()
        absolute, training = with_absolute_paths(experiment), experiment.training
        scratch, lanes = storage.join(absolute.folder, "ray"), experiment.table.lanes
        prepared = partial(body, experiment=absolute)
        return launch(prepared, self.name, self.workers, training.device, scratch, lanes, training.max_restarts)


def is_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def launch(
    body: Callable[[Worker], Result],
    launcher: str,
    workers: Workers,
    device: str,
    scratch: str,
    lanes: int,
    max_restarts: int,
) -> Result:
    """Runs a body on every worker and returns the first worker's result.

    Args:
        body: called on each worker; with Ray it must be importable and its arguments picklable.
        launcher: ``local`` or ``ray``; ignored under torchrun, which has already started the processes.
        workers: see `Workers`.
        device: ``auto``, ``cpu`` or ``cuda``.
        scratch: folder for Ray's own files, visible to all nodes.
        lanes: of the feature table, which the workers must divide.
        max_restarts: times that Ray starts the workers again after one has died.

    Raises:
        UserError: the launcher cannot start that many workers.
    """
    if is_torchrun():
        return _run_under_torchrun(body, workers, device)
    if launcher == "ray":
        from pipeline.workers.launch_ray import launch_ray

        return launch_ray(body, workers or 1, device, scratch, lanes, max_restarts)
    if workers not in (None, 1):
        count = workers if isinstance(workers, int) else f"{workers[0]}-{workers[1]}"
        raise UserError(
            f"The local launcher runs in this process and has one worker; {count} were requested. Use --launcher ray "
            f"--workers {count}, or torchrun --nproc-per-node N -m jobs.cli train EXPERIMENT."
        )
    return _run_here(body, device)


def _run_here(body: Callable[[Worker], Result], device: str) -> Result:
    device = choose_device(device)
    # A store in memory instead of a port: nothing listens, and nothing times out while a debugger stops the process.
    dist.init_process_group(backend(device), store=dist.HashStore(), rank=0, world_size=1)
    try:
        return body(this_worker(device, rank=0, workers=1, local_rank=0, local_workers=1))
    finally:
        dist.destroy_process_group()


def _run_under_torchrun(body: Callable[[Worker], Result], workers: Workers, device: str) -> Result:
    device = choose_device(device)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if workers is not None and workers != size:
        raise UserError(f"--workers is {workers}, but torchrun started {size} processes: omit --workers.")
    bound = torch.device("cuda", local_rank) if device == "cuda" else None
    dist.init_process_group(backend(device), device_id=bound)
    try:
        return body(this_worker(device, rank, size, local_rank, local_size))
    finally:
        dist.destroy_process_group()
