"""`manygate evaluate`: a checkpoint's metrics on a split, by task and scenario."""

from functools import partial

from cluster.connect import connect
from pipeline.checkpoint.choice import CheckpointChoice
from pipeline.config.experiment import Experiment
from pipeline.evaluation.evaluation import parse_evaluation
from pipeline.report.text import format_evaluation
from pipeline.scoring.checkpoint_evaluation import evaluate_on_worker
from pipeline.table.settings import read_table
from pipeline.workers.launch import Launcher
from pipeline.workers.worker_count import Workers


def run(experiment: Experiment, checkpoint: str, split: str, launcher: str, workers: Workers) -> None:
    """Evaluates on the chosen launcher."""
    run_on(Launcher(launcher, workers, connect), experiment, checkpoint, split)


def run_on(launcher: Launcher, experiment: Experiment, checkpoint: str, split: str) -> None:
    """Evaluates, writes `evaluation-SPLIT.json` and prints it as a table."""
    read_table(experiment).split(split)
    body = partial(evaluate_on_worker, checkpoint=CheckpointChoice.parse(checkpoint), split=split)
    result = launcher.run(body, experiment)
    if result is not None:
        print(f"\n{experiment.name}: {split} split, {result['rows']:,} rows, checkpoint {result['checkpoint']}\n")
        print(format_evaluation(parse_evaluation(result)))
