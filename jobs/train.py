"""`manygate train`: feature table in, checkpoints and metrics out."""

from cluster.connect import connect
from pipeline.checkpoint.choice import CheckpointChoice
from pipeline.config.experiment import Experiment
from pipeline.training.run import train
from pipeline.workers.launch import Launcher
from pipeline.workers.stop import INTERRUPTED_EXIT_CODE
from pipeline.workers.worker_count import Workers


def run(experiment: Experiment, launcher: str, workers: Workers, resume: str) -> int:
    """Trains on the chosen launcher.

    Returns:
        The exit code: 0, or `INTERRUPTED_EXIT_CODE` when a SIGTERM ended the run after a checkpoint.
    """
    ending = train(experiment, Launcher(launcher, workers, connect), CheckpointChoice.parse(resume))
    return INTERRUPTED_EXIT_CODE if ending == "interrupted" else 0
