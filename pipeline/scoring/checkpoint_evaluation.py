"""A checkpoint's metrics on a split, computed on all workers and written into the run's folder."""

import hashlib
import json
from dataclasses import asdict
from typing import Any

from pipeline import storage
from pipeline.checkpoint.choice import BEST, LATEST, CheckpointChoice
from pipeline.checkpoint.format import Checkpoint, find_checkpoint
from pipeline.config.conditional_tasks import conditional_tasks
from pipeline.config.experiment import Experiment
from pipeline.evaluation.evaluation import read_evaluation
from pipeline.evaluation.split_evaluation import SplitEvaluation
from pipeline.log_records import log_fields
from pipeline.run_folder import evaluation_file
from pipeline.scoring.restored_model import restored_model
from pipeline.scoring.smearing import (
    VALID,
    has_valid_rows,
    saved_smearing,
    smearing_of_checkpoint,
    tasks_that_need_smearing,
)
from pipeline.table.manifest import Manifest, read_manifest
from pipeline.workers.worker import Worker


def evaluate_on_worker(
    worker: Worker, experiment: Experiment, checkpoint: CheckpointChoice, split: str
) -> dict[str, Any] | None:
    """Evaluates on this worker. The first worker writes and returns the result, the others return None."""
    log_fields.begin(experiment.name, worker.rank)
    manifest = read_manifest(experiment.table_folder)
    model, saved = restored_model(experiment, manifest, checkpoint, worker)
    smearing = smearing_of_checkpoint(experiment, manifest, model, saved, worker)
    evaluation = SplitEvaluation(experiment, model.module, experiment.table_folder, manifest, split, worker)
    inputs = evaluation_inputs(experiment, manifest, saved, split)
    result = {"split": split, "checkpoint": saved.uri, "inputs": inputs, **evaluation.in_detail(smearing)}
    if not worker.is_first:
        return None
    storage.write_json(evaluation_file(experiment.folder, split), result)
    return result


def evaluation_inputs(experiment: Experiment, manifest: Manifest, saved: Checkpoint, split: str) -> str:
    """A hash of everything that an evaluation depends on: equal hashes mean that it need not be made again."""
    files = {name: asdict(file) for name, file in saved.files.items()}
    settings = experiment.evaluation.model_dump(mode="json")
    inputs = [saved.step, files, split, manifest.digests(split), settings]
    rescaled = {task.name: task.prediction for task in experiment.tasks if task.is_rescaled}
    if rescaled:
        inputs += [rescaled, _smearing_inputs(experiment, manifest, saved)]
    conditional = [task.config.name for task in conditional_tasks(experiment.tasks)]
    if conditional:  # evaluations of earlier versions lack them
        inputs += [conditional]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _smearing_inputs(experiment: Experiment, manifest: Manifest, saved: Checkpoint) -> dict[str, str]:
    """Hashes of the rows that smearing factors are estimated on; empty if none are estimated."""
    tasks = tasks_that_need_smearing(experiment)
    is_estimated = tasks and saved_smearing(tasks, saved) is None and has_valid_rows(manifest)
    return manifest.digests(VALID) if is_estimated else {}


def is_evaluated(experiment: Experiment, manifest: Manifest, saved: Checkpoint, split: str) -> bool:
    """Whether the run has the evaluation of this checkpoint on the split as it is now."""
    found = read_evaluation(evaluation_file(experiment.folder, split))
    return found is not None and found.inputs == evaluation_inputs(experiment, manifest, saved, split)


def default_choice(experiment: Experiment) -> CheckpointChoice:
    """`best` if the experiment stops early and the run has validated since its last new days, otherwise `latest`."""
    return LATEST if experiment.training.early_stopping is None else best_or_latest(experiment)


def best_or_latest(experiment: Experiment) -> CheckpointChoice:
    """`best` if there is a best checkpoint: not without early stopping, and not if its metric was never defined."""
    latest = find_checkpoint(experiment.checkpoint_folder, LATEST)
    return LATEST if latest is None or latest.state().progress.best_step is None else BEST
