"""`manygate plan`: where each table would be placed on some other cluster, and whether it fits."""

import re

from pipeline.config.experiment import Experiment
from pipeline.console import in_bytes
from pipeline.errors import UserError
from pipeline.sharding.fit_on_cluster import ClusterFit, fit_on_cluster
from pipeline.table.settings import read_table

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def run(experiment: Experiment, workers: int, device: str, memory: str) -> None:
    """Prints the plan.

    Raises:
        UserError: the tables do not fit, the workers do not divide the lanes, or the memory is not a valid size.
    """
    limit = parse_bytes(memory)
    fit = fit_on_cluster(experiment, read_table(experiment), workers, device, limit)
    print_tables(fit, workers)
    fit.check(limit)
    tables, dense = in_bytes(fit.table_bytes), in_bytes(fit.dense_bytes)
    print(f"\nFits: at most {tables} of tables and {dense} of dense part per worker, of {in_bytes(limit)}.")


def print_tables(fit: ClusterFit, workers: int) -> None:
    print(f"{'table':<20} {'rows':>14} {'dim':>5} {'with optimizer':>15}  placement")
    for placed in fit.tables:
        table, where = placed.table, f"{placed.sharding_type} on {describe_ranks(placed.ranks, workers)}"
        print(f"{table.name:<20} {table.rows:>14,} {table.dim:>5} {in_bytes(placed.bytes):>15}  {where}")


def parse_bytes(text: str) -> int:
    """Bytes of a size such as ``80GiB``.

    Raises:
        UserError: the text is not a size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise UserError(f"--memory: {text!r} is not a size; write it as 80GiB or 512MiB.")
    return int(float(match[1]) * UNITS[match[2].upper()])


def describe_ranks(ranks: list[int], workers: int) -> str:
    distinct = sorted(set(ranks))
    if len(distinct) == workers and workers > 1:
        return f"all {workers} workers"
    return f"worker{'s' if len(distinct) > 1 else ''} {', '.join(map(str, distinct))}"
