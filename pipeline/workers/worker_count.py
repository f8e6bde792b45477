"""The number of workers that a command line asks for, and whether a launcher can start it. Needs no torch."""

from pipeline.config.lanes import workers_mistake
from pipeline.errors import UserError

Workers = int | tuple[int, int] | None
"""A number of workers; a range, of which Ray uses as many as are available; or None, for one worker or torchrun's."""


def in_words(workers: Workers) -> str:
    """The value of `--workers`."""
    return f"{workers[0]}-{workers[1]}" if isinstance(workers, tuple) else str(workers)


def check_workers(launcher: str, workers: Workers, lanes: int) -> None:
    """Checks a number of workers against the lanes of the feature table and the launcher, before anything is started.

    Raises:
        UserError: the workers do not divide the lanes, or the local launcher is asked for several workers.
    """
    fewest, most = workers if isinstance(workers, tuple) else (workers or 1, workers or 1)
    mistake = workers_mistake(lanes, fewest, most)
    if mistake is not None:
        raise UserError(f"--workers {in_words(workers)}: {mistake}.")
    if launcher == "local" and most > 1:
        raise UserError(
            f"The local launcher runs in this process and has one worker; {in_words(workers)} were requested. Use "
            f"--launcher ray --workers {in_words(workers)}; train, evaluate and predict can also be started by "
            "torchrun --nproc-per-node N -m jobs.cli."
        )
