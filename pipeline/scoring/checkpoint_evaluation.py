"""A checkpoint's metrics on a split, computed on all workers and written into the run's folder."""

from typing import Any

from pipeline import storage
from pipeline.checkpoint.choice import CheckpointChoice
from pipeline.config.experiment import Experiment
from pipeline.evaluation.split_evaluation import SplitEvaluation
from pipeline.log_records import log_fields
from pipeline.run_folder import evaluation_file
from pipeline.scoring.restored_model import restored_model
from pipeline.table.manifest import read_manifest
from pipeline.workers.worker import Worker


def evaluate_on_worker(
    worker: Worker, experiment: Experiment, checkpoint: CheckpointChoice, split: str
) -> dict[str, Any] | None:
    """Evaluates on this worker. The first worker writes and returns the result, the others return None."""
    log_fields.begin(experiment.name, worker.rank)
    manifest = read_manifest(experiment.table_folder)
    model, saved = restored_model(experiment, manifest, checkpoint, worker)
    evaluation = SplitEvaluation(experiment, model.module, experiment.table_folder, manifest, split, worker)
    result = {"split": split, "checkpoint": saved.uri, **evaluation.in_detail()}
    if not worker.is_first:
        return None
    storage.write_json(evaluation_file(experiment.folder, split), result)
    return result
