"""The Ray launcher: the same body on the workers of a Ray Train group. The only file that imports ray.train."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import WorkerGroupError

from pipeline import storage
from pipeline.errors import UserError
from pipeline.training.ray_link import join_link, open_link
from pipeline.training.worker import Worker, backend, this_worker

Result = TypeVar("Result")


def launch_ray(body: Callable[[Worker], Result], workers: int, device: str, scratch: str) -> Result:
    """Runs a body on Ray workers and returns the first worker's result. Ray is connected already.

    Args:
        body: importable on the workers, with picklable arguments.
        workers: one process each.
        device: ``auto``, ``cpu`` or ``cuda``.
        scratch: folder that all nodes see, for what Ray Train itself writes; deleted at the end.

    Raises:
        UserError: the cluster has too few CPUs or GPUs, or the body raised one.
    """
    gpus = ray.cluster_resources().get("GPU", 0)
    use_gpu = device == "cuda" or (device == "auto" and gpus >= workers)
    check_resources(workers, use_gpu)
    kind = "cuda" if use_gpu else "cpu"
    with open_link() as link:
        trainer = TorchTrainer(
            run_worker,
            train_loop_config={"body": body, "device": kind, "link": link},
            torch_config=TorchConfig(backend=backend(kind)),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu),
            # Nothing is reported to Ray: workers write checkpoints straight to the run's folder and resume from there.
            run_config=RunConfig(storage_path=scratch, failure_config=FailureConfig(max_failures=0)),
        )
        try:
            return trainer.fit().return_value  # type: ignore[attr-defined]
        except WorkerGroupError as error:
            raise user_error_of(error) or error from None
        finally:
            storage.delete_folder(scratch)


def run_worker(config: dict[str, Any]) -> Any:
    """What each Ray worker runs: its process group is up, its place is in the environment."""
    place = [int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")]
    worker = this_worker(config["device"], *place)
    join_link(config["link"], worker.stop)
    return config["body"](worker)


def check_resources(workers: int, use_gpu: bool) -> None:
    """Raises UserError where the cluster could never place the workers: Ray would wait for ever."""
    kind = "GPU" if use_gpu else "CPU"
    there = int(ray.cluster_resources().get(kind, 0))
    if there < workers:
        raise UserError(
            f"{workers} workers need {workers} {kind}s, and the Ray cluster has {there}: "
            f"use --workers {max(there, 1)}, add nodes, or use another training.device."
        )


def user_error_of(error: WorkerGroupError) -> UserError | None:
    """The user's mistake among the failures of a worker group, if it is one."""
    for failure in error.worker_failures.values():
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, UserError):
                return UserError(*cause.args)
            cause = getattr(cause, "_base_exc", None) or cause.__cause__
    return None
