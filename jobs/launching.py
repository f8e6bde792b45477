"""What the jobs that run on workers share."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from pipeline import storage
from pipeline.config.experiment import Experiment
from pipeline.table.manifest import Manifest, read_manifest
from pipeline.table.settings import check_table_is_of
from pipeline.workers.launch import Workers, is_torchrun, launch

Result = TypeVar("Result")


def read_table(experiment: Experiment) -> Manifest:
    """The manifest of the run's feature table.

    Raises:
        UserError: there is none, or it was made with other settings.
    """
    manifest = read_manifest(experiment.table_folder)
    check_table_is_of(experiment, experiment.table_folder, manifest)
    return manifest


def checkpoint_choice(choice: str) -> str:
    """`auto`, `never`, `latest` or `best` as they are; a path so that workers in other folders find it."""
    return choice if choice in ("auto", "never", "latest", "best") else storage.absolute(choice)


def with_absolute_paths(experiment: Experiment) -> Experiment:
    """The experiment with its run and its feature table where they are now: Ray workers have another working folder."""
    table = experiment.table
    if table.path is not None:
        table = table.model_copy(update={"path": storage.absolute(table.path)})
    return experiment.model_copy(update={"output": storage.absolute(experiment.output), "table": table})


def launch_on_workers(
    body: Callable[..., Result], experiment: Experiment, launcher: str, workers: Workers, **arguments: object
) -> Result:
    """Runs ``body(worker, experiment=..., **arguments)`` on every worker and returns the first worker's result."""
    if launcher == "ray" and not is_torchrun():
        from cluster.connect import connect

        connect()
    placed = with_absolute_paths(experiment)
    scratch = storage.join(placed.folder, "ray")
    prepared, training = partial(body, experiment=placed, **arguments), experiment.training
    lanes, restarts = experiment.table.lanes, training.max_restarts
    return launch(prepared, launcher, workers, training.device, scratch, lanes, restarts)
