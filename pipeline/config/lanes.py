"""How batches and workers fit the lanes of a feature table.

Every lane contributes the same number of rows to a batch, and every worker reads the same number of lanes.
"""

from pipeline.errors import UserError


def possible_workers(lanes: int) -> list[int]:
    """The numbers of workers that divide the lanes, ascending."""
    return [workers for workers in range(1, lanes + 1) if lanes % workers == 0]


def workers_mistake(lanes: int, fewest: int, most: int) -> str | None:
    """An error message about a range of numbers of workers, with numbers that fit; None if one of them does."""
    possible = possible_workers(lanes)
    if any(fewest <= count <= most for count in possible):
        return None
    with_more_lanes = next((2**k for k in range(most.bit_length()) if fewest <= 2**k), None)
    rebuild = f", or make the table again with table.lanes={with_more_lanes}" if with_more_lanes else ""
    numbers = ", ".join(map(str, possible))
    return f"the workers must divide the {lanes} lanes of the feature table; use one of {numbers}{rebuild}"


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
    mistake = workers_mistake(lanes, workers, workers)
    if mistake is not None:
        raise UserError(f"{workers} workers: {mistake}.")
    mistake = batch_mistake(global_batch_size, lanes)
    if mistake is not None:
        raise UserError(f"The global batch does not fit the feature table: {mistake}.")
