"""The runs of a comparison: one model with one seed each, trained and evaluated like any other run."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline import storage
from pipeline.checkpoint.choice import AUTO, LATEST, CheckpointChoice
from pipeline.checkpoint.format import find_checkpoint
from pipeline.comparison.references import TaskScenario
from pipeline.config.experiment import Experiment
from pipeline.config.load import read_experiment
from pipeline.errors import UserError
from pipeline.run_folder import CHECKPOINTS_FOLDER, evaluated_splits
from pipeline.scoring.checkpoint_evaluation import best_or_latest, evaluate_on_worker
from pipeline.sharding.optimizers import check_weight_decay
from pipeline.table.manifest import Manifest
from pipeline.table.settings import differences
from pipeline.training.run import train
from pipeline.workers.launch import Launcher
from pipeline.workers.worker import Worker

TIMING = "timing.json"
"""File in a run's folder: wall-clock seconds of its training, if that was not interrupted."""


@dataclass(frozen=True)
class ComparedRun:
    """One model with one seed."""

    model: str | TaskScenario  # name of the variant, or task and scenario of the reference
    seed: int
    experiment: Experiment


def in_order(experiments: Mapping[Any, Experiment], seeds: list[int]) -> list[ComparedRun]:
    """All runs: every experiment with the first seed, then with the next."""
    runs = []
    for seed in seeds:
        for model, experiment in experiments.items():
            training = experiment.training.model_copy(update={"seed": seed})
            update = {"name": f"{experiment.name}-seed-{seed}", "training": training}
            runs.append(ComparedRun(model, seed, experiment.model_copy(update=update)))
    return runs


def check_same_runs(runs: list[ComparedRun]) -> None:
    """Raises UserError if the folder of a run holds a run that was begun with another experiment, or if a new run would
    be refused when it is trained."""
    for experiment in (run.experiment for run in runs):
        folder = experiment.folder
        if CHECKPOINTS_FOLDER not in storage.list_folder(folder) and not evaluated_splits(folder):
            check_weight_decay(experiment.training.sparse_optimizer)
            continue
        earlier = read_experiment(experiment.file)
        changes = list(differences(earlier.model_dump(mode="json"), experiment.model_dump(mode="json"), ""))
        if changes:
            raise UserError(
                f"{folder} is a run of another experiment: {'; '.join(changes[:5])}. Delete that folder to train the "
                "run again, change the experiment back, or give the variant another name."
            )


def check_trained_on(experiment: Experiment, manifest: Manifest) -> None:
    """Raises UserError if a run's last checkpoint was trained on other files than the table has now."""
    saved = find_checkpoint(experiment.checkpoint_folder, LATEST)
    if saved is not None and saved.state().progress.partitions != manifest.digests("train"):
        raise UserError(
            f"{experiment.folder} was trained on other files of the train split than {experiment.table_folder} has "
            "now: delete the folder of the run to train it again, so that all runs use the same table."
        )


def train_and_evaluate(run: ComparedRun, split: str, launcher: Launcher) -> bool:
    """Trains a run, or resumes it, and evaluates it. Returns False if it was interrupted.

    Raises:
        UserError: as `train` and `evaluate_on_worker` do, with the name of the run.
    """
    experiment = run.experiment
    is_new = not storage.list_folder(experiment.checkpoint_folder)
    start = time.monotonic()
    try:
        if train(experiment, launcher, AUTO) == "interrupted":
            return False
        if is_new:
            timing = {"training_seconds": time.monotonic() - start}
            storage.write_json(storage.join(experiment.folder, TIMING), timing)
        body = partial(evaluate_run, checkpoint=best_or_latest(experiment), split=split)
        was_interrupted = launcher.run(body, experiment)
    except UserError as error:
        raise UserError(f"{experiment.name}: {error}") from error
    return not was_interrupted


def evaluate_run(worker: Worker, experiment: Experiment, checkpoint: CheckpointChoice, split: str) -> bool:
    """Evaluates on this worker. Returns whether a SIGTERM arrived meanwhile, which Ray's launcher turns into a flag."""
    evaluate_on_worker(worker, experiment, checkpoint, split)
    return worker.stop.is_for_good
