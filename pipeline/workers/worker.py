"""One process of a run: its rank and its device."""

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from pipeline.config.cluster import ClusterConfig
from pipeline.errors import UserError
from pipeline.workers.resources import OwnMachine, Resources, common_resources, own_machine
from pipeline.workers.stop import StopSignal

Result = TypeVar("Result")

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


class Heartbeat:
    """A worker's current activity and its start time, for the watchdog. Every activity calls `beat` when it starts."""

    def __init__(self) -> None:
        self.beat("start")

    def beat(self, what: str) -> None:
        self._now = (what, time.monotonic())  # in one assignment: the watchdog is another thread

    @property
    def what(self) -> str:
        return self._now[0]

    def age_s(self) -> float:
        return time.monotonic() - self._now[1]


@dataclass(frozen=True)
class Worker:
    """A worker whose process group is up."""

    rank: int
    workers: int
    device: torch.device
    resources: Resources
    control: dist.ProcessGroup  # on CPU, for small values, in addition to the group that the model uses
    stop: StopSignal = field(default_factory=StopSignal)
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    attempt: int = 0  # times that Ray has started the workers of this command again
    has_saved: bool = False  # whether an earlier attempt has saved a checkpoint
    on_saved: Callable[[], object] = lambda: None  # called on the first worker when this attempt has saved one

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of a CPU tensor over all workers."""
        dist.all_reduce(values, group=self.control)
        return values

    def gather(self, value: object) -> list | None:
        """The values of all workers, in order of rank, on the first worker; None on the others."""
        out = [None] * self.workers if self.is_first else None
        dist.gather_object(value, out, dst=0, group=self.control)
        return out

    def on_first(self, action: Callable[[], Result]) -> Result:
        """Runs an action on the first worker; returns its result, or raises its error, on every worker.

        Otherwise, after an error on the first worker, the others would wait for it.
        """
        box: list[Any] = [None, None]
        if self.is_first:
            try:
                box[0] = action()
            except Exception as error:  # noqa: BLE001 - raised below, on every worker
                box[1] = error
        dist.broadcast_object_list(box, src=0, group=self.control)
        if box[1] is not None:
            raise box[1]
        return box[0]


def choose_device(wanted: str) -> str:
    """`cpu` or `cuda`, for a setting of auto, cpu or cuda.

    Raises:
        UserError: the setting is cuda, but there is no CUDA device.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "training.device is cuda, but torch sees no CUDA device here: use training.device=auto, or run "
            "`manygate doctor` to see what is missing."
        )
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def backend(device: str) -> str:
    """The process group's backend for a device."""
    return "nccl" if device == "cuda" else "gloo"


def keep_memory() -> None:
    """Makes this process keep the memory that it frees, for its next step.

    Otherwise the C library returns blocks of 32 MiB and more to the kernel at once, and a step spends up to a third of
    its time waiting for the kernel to clear the same memory again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def this_worker(device: str, rank: int, workers: int, local_rank: int, cluster: ClusterConfig) -> Worker:
    """This process as a worker, once its process group is up. Collective.

    Which workers share a machine is asked of the workers themselves: a launcher may place them unevenly. The number of
    threads is set here, not by the launcher: with the same number, training repeats bit by bit.

    Args:
        device: ``cpu`` or ``cuda``.
        rank: of this worker.
        workers: number of workers.
        local_rank: the index of this worker's GPU.
        cluster: what a worker reserves.
    """
    keep_memory()
    own_device = torch.device("cuda", local_rank) if device == "cuda" else torch.device("cpu")
    device_memory = None
    if device == "cuda":
        torch.cuda.set_device(own_device)
        device_memory = torch.cuda.get_device_properties(own_device).total_memory
    control = dist.new_group(backend="gloo")
    machines: list[OwnMachine] = [own_machine(device_memory)] * workers
    dist.all_gather_object(machines, machines[rank], group=control)
    resources = common_resources(machines, cluster)
    torch.set_num_threads(resources.threads)
    return Worker(rank, workers, own_device, resources, control)
