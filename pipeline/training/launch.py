"""Launchers without Ray: this process alone, or one of torchrun's."""

import os
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from pipeline.errors import UserError
from pipeline.training.worker import Worker, backend, choose_device, this_worker

Result = TypeVar("Result")


def is_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def launch(body: Callable[[Worker], Result], launcher: str, workers: int | None, device: str, scratch: str) -> Result:
    """Runs a body on every worker and returns the first worker's result.

    Args:
        body: what a worker does; importable, with picklable arguments, where Ray carries it.
        launcher: ``local`` or ``ray``; under torchrun the processes are already there.
        workers: number of workers; under torchrun, what torchrun was given.
        device: ``auto``, ``cpu`` or ``cuda``.
        scratch: folder that all nodes see, for what Ray writes of its own.

    Raises:
        UserError: the launcher cannot give that many workers.
    """
    if is_torchrun():
        return _run_under_torchrun(body, workers, device)
    if launcher == "ray":
        from pipeline.training.launch_ray import launch_ray

        return launch_ray(body, workers or 1, device, scratch)
    if workers not in (None, 1):
        raise UserError(
            f"The local launcher runs in this process and has one worker; {workers} were asked for. Use --launcher ray "
            f"--workers {workers}, or torchrun --nproc-per-node {workers} -m jobs.cli train EXPERIMENT."
        )
    return _run_here(body, device)


def _run_here(body: Callable[[Worker], Result], device: str) -> Result:
    device = choose_device(device)
    # A store in memory instead of a port: nothing listens, and a debugger may stop the process for as long as it likes.
    dist.init_process_group(backend(device), store=dist.HashStore(), rank=0, world_size=1)
    try:
        return body(this_worker(device, rank=0, workers=1, local_rank=0, local_workers=1))
    finally:
        dist.destroy_process_group()


def _run_under_torchrun(body: Callable[[Worker], Result], workers: int | None, device: str) -> Result:
    device = choose_device(device)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if workers is not None and workers != size:
        raise UserError(f"--workers is {workers}, but torchrun started {size} processes: leave --workers away.")
    bound = torch.device("cuda", local_rank) if device == "cuda" else None
    dist.init_process_group(backend(device), device_id=bound)
    try:
        return body(this_worker(device, rank, size, local_rank, local_size))
    finally:
        dist.destroy_process_group()
