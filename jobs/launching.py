"""What the jobs that run on workers share."""

from pipeline import storage
from pipeline.config.experiment import Experiment
from pipeline.training.launch import is_torchrun


def table_of(experiment: Experiment) -> str:
    """The run's feature table."""
    return storage.join(experiment.folder, "table")


def checkpoints_of(experiment: Experiment) -> str:
    """The folder of the run's checkpoints."""
    return storage.join(experiment.folder, "checkpoints")


def connect_if_ray(launcher: str) -> None:
    """Connects to Ray where the launcher needs it."""
    if launcher == "ray" and not is_torchrun():
        from cluster.connect import connect

        connect()
