"""The Ray launcher: the same body on the workers of a Ray Train group.

Here and in `failures.py` are the only imports of ray.train.

The driver decides how many workers start. When one of them has died, when their machine is taken away, or when there is
room for more, it starts them again, and they resume from a checkpoint in the run's folder.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import RunConfig, ScalingConfig
from ray.train.backend import Backend, BackendConfig
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

from pipeline import storage
from pipeline.config.cluster import ClusterConfig
from pipeline.config.experiment import Experiment
from pipeline.errors import UserError
from pipeline.job_progress import log_workers
from pipeline.secret_files import check_secrets
from pipeline.workers import network
from pipeline.workers.cluster_room import GroupWatch, WorkerDemand, wait_for_room
from pipeline.workers.driver_channel import Driver, GroupReport, join_channel, open_channel
from pipeline.workers.failures import describe_failure, final_error
from pipeline.workers.stop import StopSignal
from pipeline.workers.worker import Worker, backend, this_worker

Result = TypeVar("Result")

log = logging.getLogger(__name__)

SCRATCH = "ray"
"""A folder in the run's folder for Ray Train's own files, visible to all machines; deleted at the end."""

FAILED_STARTS = 10  # times in a row that Ray may fail to start the workers, such as on a machine that has just gone


@dataclass(frozen=True)
class Start:
    """A start of the workers."""

    body: Callable[[Worker], Any]
    device: str
    cluster: ClusterConfig
    channel: Any
    attempt: int  # earlier starts of the same command
    restarts: int  # those that ended because a worker had died
    has_saved: bool  # whether one of them has saved a checkpoint


@dataclass(frozen=True)
class Outcome:
    """What the first worker returns."""

    result: Any
    is_stopped: bool  # the body has ended early, because of a stop request


class _Backend(Backend):
    """Of Ray Train's own backend only the visible devices: the group is formed by `worker_group`."""

    share_cuda_visible_devices = True


class _BackendConfig(BackendConfig):
    @property
    def backend_cls(self) -> type[Backend]:
        return _Backend


def launch_ray(
    body: Callable[[Worker], Result], workers: int | tuple[int, int], experiment: Experiment, stop: StopSignal
) -> Result:
    """Runs a body on Ray workers and returns the first worker's result. Ray is connected already.

    Args:
        body: importable on the workers, with picklable arguments.
        workers: one process each; with a range, as many as there is room for.
        experiment: of the run, with absolute paths.
        stop: set by a SIGTERM. A body that does not look at it runs to its end.

    Raises:
        UserError: the cluster cannot have so many workers, or the body raised one.
        InterruptedRunError: a SIGTERM arrived while the workers were not running.
    """
    fewest, most = workers if isinstance(workers, tuple) else (workers, workers)
    device, demand = worker_demand(experiment, fewest, most)
    # The driver itself looks at machines that are being taken away. Ray Train's watcher would end the workers.
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    attempt = restarts = failed_starts = 0
    has_saved = False
    with open_channel(stop) as driver:
        while True:
            count = wait_for_room(demand, attempt == 0, driver.stop)
            start = Start(body, device, experiment.cluster, driver.channel, attempt, restarts, has_saved)
            scratch = storage.join(experiment.folder, SCRATCH)
            storage.create_folder(scratch, private=True)
            try:
                outcome, report = run_group(start, demand, count, driver, scratch)
            finally:
                storage.delete_folder(experiment.folder, SCRATCH)
            has_saved, attempt = report.has_saved, attempt + 1
            if report.refusal is not None:
                raise UserError(report.refusal)
            if isinstance(outcome, Outcome):
                if not outcome.is_stopped or driver.stop.is_for_good:
                    result: Result = outcome.result
                    return result
                failed_starts = 0
                continue
            if is_failed_start(outcome):
                failed_starts += 1
                if failed_starts > FAILED_STARTS:
                    raise outcome
                log.warning("Ray could not start %d workers: %s", count, describe_failure(outcome))
                continue
            failed_starts, restarts = 0, restarts + 1
            if restarts > experiment.training.max_restarts:
                raise final_error(outcome, experiment.training.max_restarts) from None
            log.info("The workers are started again (restart %d): %s", restarts, describe_failure(outcome))


def worker_demand(experiment: Experiment, fewest: int, most: int) -> tuple[str, WorkerDemand]:
    """The device of the workers, and what a run asks of the cluster."""
    wanted, cluster = experiment.training.device, experiment.cluster
    has_gpus = ray.cluster_resources().get("GPU", 0) >= fewest * cluster.gpus_per_worker
    device = "cuda" if wanted == "cuda" or (wanted == "auto" and has_gpus) else "cpu"
    resources = {"CPU": float(cluster.cpus_per_worker or 1)}
    if device == "cuda":
        resources["GPU"] = cluster.gpus_per_worker
    if cluster.memory_per_worker is not None:
        resources["memory"] = float(cluster.memory_per_worker)
    return device, WorkerDemand(fewest, most, experiment.table.lanes, resources, cluster.placement.upper())


def run_group(
    start: Start, demand: WorkerDemand, count: int, driver: Driver, scratch: str
) -> tuple[Outcome | TrainingFailedError, GroupReport]:
    """Runs one start of the workers to its end; returns the first worker's outcome or the failure, and the report."""
    trainer = DataParallelTrainer(
        run_worker,
        train_loop_config={"start": start},
        backend_config=_BackendConfig(),
        scaling_config=ScalingConfig(
            num_workers=count,
            use_gpu=start.device == "cuda",
            resources_per_worker=dict(demand.resources),
            placement_strategy=demand.strategy,
        ),
        # Nothing is reported to Ray: workers write checkpoints straight to the run's folder and resume from there.
        run_config=RunConfig(
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
        ),
    )
    watch = GroupWatch(demand, count, driver.stop)
    driver.begin(start.attempt, watch.look)
    try:
        outcome = trainer.fit().return_value  # type: ignore[attr-defined]
    except TrainingFailedError as error:
        outcome = error
    finally:
        report = driver.end()
        watch.close()
    return outcome, report


def run_worker(config: dict[str, Any]) -> Outcome:
    """Runs on each Ray worker."""
    start: Start = config["start"]
    try:
        check_secrets()
        worker = form_group(start)
        try:
            result = start.body(worker)
        finally:
            dist.destroy_process_group()
    except storage.StoreError:  # the store may answer when the workers are started again
        raise
    except network.UnreachableError as error:
        if start.attempt == 0:  # later, a machine may be unreachable because it is about to be lost
            ray.get(start.channel.refuse.remote(start.attempt, str(error)))
        raise
    except UserError as error:
        ray.get(start.channel.refuse.remote(start.attempt, str(error)))
        raise
    return Outcome(result, worker.stop.is_obeyed)


def form_group(start: Start) -> Worker:
    """Joins the process group of the workers, on the network by whose addresses Ray knows the machines.

    Raises:
        UnreachableError: machines cannot connect to each other.
    """
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    address = ray.util.get_node_ip_address()
    listener = network.listen_on(address) if rank == 0 else None
    host, port = broadcast_from_rank_zero(listener.getsockname()[:2] if listener is not None else None)
    if listener is not None:
        store = network.serve_store(listener, workers)
    else:
        store = network.join_store(host, port, workers, rank, address)
    network.check_reachable(store, rank, workers, address)
    network.use_interface(address)
    if start.device == "cuda":
        torch.cuda.set_device(context.get_local_rank())
    dist.init_process_group(backend(start.device), store=store, rank=rank, world_size=workers)
    worker = this_worker(start.device, rank, workers, context.get_local_rank(), start.cluster)
    saved = start.channel.saved.remote
    worker = replace(worker, attempt=start.attempt, has_saved=start.has_saved, on_saved=saved)
    join_channel(start.channel, start.attempt, rank, worker.stop)
    machines = worker.gather(address)
    if machines is not None:
        log_workers(machines, start.restarts)
    return worker


def is_failed_start(error: TrainingFailedError) -> bool:
    """Whether Ray could not start the workers, so that none of them has died."""
    return isinstance(error, ControllerError)
