"""How batches and workers fit the lanes of a feature table.

Every lane contributes the same number of rows to a batch, and every worker reads the same number of lanes.
"""

from pipeline.errors import UserError


def possible_workers(lanes: int) -> list[int]:
    """The numbers of workers that divide the lanes, ascending."""
    return [workers for workers in range(1, lanes + 1) if lanes % workers == 0]


def batch_mistake(size: int, lanes: int) -> str | None:
    """An error message about the size of a global batch, with a size that fits; None if it fits the lanes."""
    if size % lanes == 0:
        return None
    return (
        f"{size} is not a multiple of table.lanes ({lanes}): every lane contributes the same number of rows to a "
        f"batch; use {max(size // lanes, 1) * lanes}"
    )


def check_division(lanes: int, workers: int, global_batch_size: int) -> None:
    """Raises UserError unless workers divide lanes and lanes divide the global batch."""
    if workers not in possible_workers(lanes):
        raise UserError(
            f"{workers} workers do not divide the {lanes} lanes of the feature table: use {possible_workers(lanes)} "
            "workers, or make the table again with another table.lanes."
        )
    mistake = batch_mistake(global_batch_size, lanes)
    if mistake is not None:
        raise UserError(f"The global batch does not fit the feature table: {mistake}.")
