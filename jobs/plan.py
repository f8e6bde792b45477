"""`manygate plan`: where each table would be placed on some other cluster, and whether it fits."""

from pipeline.config.experiment import Experiment
from pipeline.sharding.fit_on_cluster import ClusterFit, fit_on_cluster
from pipeline.sizes import in_bytes
from pipeline.table.settings import read_table
from pipeline.workers.resources import common_resources, own_machine

GPU_MEMORY = 80 * 2**30


def run(experiment: Experiment, workers: int, device: str, memory: int | None) -> None:
    """Prints the plan.

    Args:
        experiment: of the run.
        workers: number of workers.
        device: of each worker, ``cpu`` or ``cuda``.
        memory: bytes of each worker's device; None: see `assumed_memory`.

    Raises:
        UserError: the tables do not fit, or the workers do not divide the lanes.
    """
    limit = memory or assumed_memory(experiment, device)
    fit = fit_on_cluster(experiment, read_table(experiment), workers, device, limit)
    print_tables(fit, workers)
    fit.check(limit)
    tables, dense = in_bytes(fit.table_bytes), in_bytes(fit.dense_bytes)
    print(f"\nFits: at most {tables} of tables and {dense} of dense part per worker, of {in_bytes(limit)}.")


def assumed_memory(experiment: Experiment, device: str) -> int:
    """Bytes that a worker may use if no other number is given: on CPU as in training, with one worker per machine."""
    if device == "cuda":
        return GPU_MEMORY
    return common_resources([own_machine(device_memory=None)], experiment.cluster).memory


def print_tables(fit: ClusterFit, workers: int) -> None:
    print(f"{'table':<20} {'rows':>14} {'dim':>5} {'with optimizer':>15}  placement")
    for placed in fit.tables:
        table, where = placed.table, f"{placed.sharding_type} on {describe_ranks(placed.ranks, workers)}"
        print(f"{table.name:<20} {table.rows:>14,} {table.dim:>5} {in_bytes(placed.bytes):>15}  {where}")


def describe_ranks(ranks: list[int], workers: int) -> str:
    distinct = sorted(set(ranks))
    if len(distinct) == workers and workers > 1:
        return f"all {workers} workers"
    return f"worker{'s' if len(distinct) > 1 else ''} {', '.join(map(str, distinct))}"
