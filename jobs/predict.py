"""`manygate predict`: writes a checkpoint's predictions of a split as Parquet, with keys and labels."""

from functools import partial

from cluster.connect import connect
from pipeline import storage
from pipeline.checkpoint.choice import CheckpointChoice
from pipeline.config.experiment import Experiment
from pipeline.scoring.prediction_files import clear_unfinished, predict_on_worker
from pipeline.table.settings import read_table
from pipeline.workers.launch import Launcher
from pipeline.workers.worker_count import Workers


def run(experiment: Experiment, checkpoint: str, split: str, output: str, launcher: str, workers: Workers) -> None:
    """Writes the predictions of a split into a folder, see `prediction_files.py`, and prints their number.

    Raises:
        UserError: the output folder is not empty, or as `evaluate` does.
    """
    read_table(experiment).split(split)
    output = storage.absolute(output)
    clear_unfinished(output)
    choice = CheckpointChoice.parse(checkpoint)
    body = partial(predict_on_worker, checkpoint=choice, split=split, output=output)
    rows = Launcher(launcher, workers, connect).run(body, experiment)
    if rows is not None:
        print(f"{rows:,} predictions of the {split} split are in {output}.")
