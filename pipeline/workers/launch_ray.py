"""The Ray launcher: the same body on the workers of a Ray Train group. The only file that imports ray.train.

Ray starts the workers again when one of them has died. They then resume from a checkpoint in the run's folder.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import ray
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import WorkerGroupError

from pipeline import storage
from pipeline.config.lanes import possible_workers
from pipeline.errors import UserError
from pipeline.workers.driver_channel import join_channel, open_channel
from pipeline.workers.worker import Worker, backend, this_worker

Result = TypeVar("Result")


def launch_ray(
    body: Callable[[Worker], Result],
    workers: int | tuple[int, int],
    device: str,
    scratch: str,
    lanes: int,
    max_restarts: int,
) -> Result:
    """Runs a body on Ray workers and returns the first worker's result. Ray is connected already.

    Args:
        body: importable on the workers, with picklable arguments.
        workers: one process each; with a range, Ray uses as many as are available at each start of the workers.
        device: ``auto``, ``cpu`` or ``cuda``.
        scratch: folder for Ray Train's own files, visible to all nodes; deleted at the end.
        lanes: of the feature table, which the workers must divide.
        max_restarts: times that the workers are started again after one has died.

    Raises:
        UserError: the cluster has too few CPUs or GPUs, or the body raised one.
    """
    fewest, most = workers if isinstance(workers, tuple) else (workers, workers)
    gpus = ray.cluster_resources().get("GPU", 0)
    use_gpu = device == "cuda" or (device == "auto" and gpus >= fewest)
    check_resources(fewest, use_gpu)
    kind = "cuda" if use_gpu else "cpu"
    with open_channel() as channel:
        trainer = TorchTrainer(
            run_worker,
            train_loop_config={
                "body": body,
                "device": kind,
                "channel": channel,
                "lanes": lanes,
                "is_range": fewest < most,
            },
            torch_config=TorchConfig(backend=backend(kind)),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu),  # type: ignore[arg-type]
            # Nothing is reported to Ray: workers write checkpoints straight to the run's folder and resume from there.
            run_config=RunConfig(storage_path=scratch, failure_config=FailureConfig(max_failures=max_restarts)),
        )
        try:
            result = trainer.fit().return_value  # type: ignore[attr-defined]
        except WorkerGroupError as error:
            raise user_error_of(error) or error from None
        finally:
            storage.delete_folder(scratch)
        refusal: Any = ray.get(channel.refusal.remote())
        if refusal is not None:
            raise UserError(refusal)
        return result


def run_worker(config: dict[str, Any]) -> Any:
    """Runs on each Ray worker. Its process group is up, and its ranks are in the environment."""
    ranks = [int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")]
    channel = config["channel"]
    begun: list[Any] = [ray.get(channel.begin.remote()) if ranks[0] == 0 else None]
    dist.broadcast_object_list(begun, src=0)
    attempt, has_saved, refusal = begun[0]
    if refusal is not None:  # Ray starts the workers again after a UserError too, which would only be raised again
        return None
    if config["is_range"]:
        usable = max(count for count in possible_workers(config["lanes"]) if count <= ranks[1])
        if usable < ranks[1] and not regroup(usable, backend(config["device"])):
            return None
        ranks = [ranks[0], usable, ranks[2], min(ranks[3], usable)]
    worker = this_worker(config["device"], *ranks)
    worker = replace(worker, attempt=attempt, has_saved=has_saved, on_saved=channel.saved.remote)
    join_channel(channel, worker.stop)
    try:
        return config["body"](worker)
    except storage.StoreError:  # the store may answer when the workers are started again
        raise
    except UserError as error:
        ray.get(channel.refuse.remote(attempt, str(error)))
        raise


def regroup(usable: int, name: str) -> bool:
    """Puts the first workers into a separate process group; the others remain unused.

    Args:
        usable: the number of workers in the group.
        name: the group's backend.

    Returns:
        Whether this worker is in the group.
    """
    rank, host = dist.get_rank(), os.environ["MASTER_ADDR"]
    store = dist.TCPStore(host, 0, usable, is_master=True, wait_for_workers=False) if rank == 0 else None
    port: list[Any] = [store.port if store is not None else None]
    dist.broadcast_object_list(port, src=0)
    dist.destroy_process_group()
    if rank >= usable:
        return False
    store = store or dist.TCPStore(host, port[0], usable, is_master=False)
    dist.init_process_group(name, store=store, rank=rank, world_size=usable)
    return True


def check_resources(workers: int, use_gpu: bool) -> None:
    """Raises UserError if the cluster has too few CPUs or GPUs for the workers: Ray would wait for them for ever."""
    kind = "GPU" if use_gpu else "CPU"
    available = int(ray.cluster_resources().get(kind, 0))
    if available < workers:
        raise UserError(
            f"{workers} workers need {workers} {kind}s, and the Ray cluster has {available}: "
            f"use --workers {max(available, 1)}, add nodes, or use another training.device."
        )


def user_error_of(error: WorkerGroupError) -> UserError | None:
    """The UserError among the failures of a worker group, if there is one."""
    for failure in error.worker_failures.values():
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, UserError):
                return UserError(*cause.args)
            cause = getattr(cause, "_base_exc", None) or cause.__cause__
    return None
