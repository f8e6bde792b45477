"""`manygate evaluate`: a checkpoint's metrics on a split, by task and scenario."""

from typing import Any

from jobs.launching import checkpoint_choice, launch_on_workers, read_table
from pipeline import storage
from pipeline.checkpoint.format import Checkpoint, check_files, find_checkpoint
from pipeline.config.experiment import Experiment
from pipeline.errors import UserError
from pipeline.evaluation.run import SplitEvaluation
from pipeline.report.text import format_evaluation
from pipeline.sharding.model_inputs import model_inputs
from pipeline.sharding.shard import ShardedModel, shard
from pipeline.table.manifest import Manifest, read_manifest
from pipeline.training.state import restore_weights, run_settings
from pipeline.workers.launch import Workers
from pipeline.workers.worker import Worker


def run(experiment: Experiment, checkpoint: str, split: str, launcher: str, workers: Workers) -> None:
    """Evaluates, writes `evaluation-SPLIT.json` and prints it as a table."""
    read_table(experiment).split(split)
    result = launch_on_workers(
        evaluate_on_worker, experiment, launcher, workers, checkpoint=checkpoint_choice(checkpoint), split=split
    )
    if result is not None:
        print(f"\n{experiment.name}: {split} split, {result['rows']:,} rows, checkpoint {result['checkpoint']}\n")
        print(format_evaluation(result))


def evaluate_on_worker(worker: Worker, experiment: Experiment, checkpoint: str, split: str) -> dict[str, Any] | None:
    """Evaluates on this worker; the first one writes and returns the result, the others return None."""
    manifest = read_manifest(experiment.table_folder)
    model, saved = restored_model(experiment, manifest, checkpoint, worker)
    evaluation = SplitEvaluation(experiment, model.module, experiment.table_folder, manifest, split, worker)
    result = {"split": split, "checkpoint": saved.uri, **evaluation.in_detail()}
    if not worker.is_first:
        return None
    storage.write_json(storage.join(experiment.folder, f"evaluation-{split}.json"), result)
    return result


def restored_model(
    experiment: Experiment, manifest: Manifest, checkpoint: str, worker: Worker
) -> tuple[ShardedModel, Checkpoint]:
    """The experiment's model with a checkpoint's weights.

    Raises:
        UserError: there is no such checkpoint, or it belongs to another model.
    """
    saved = worker.on_first(lambda: find_checkpoint(experiment.checkpoint_folder, checkpoint))
    if saved is None:
        raise UserError(
            f"There is no complete checkpoint in {experiment.checkpoint_folder}: run `manygate train EXPERIMENT` first."
        )
    damage = check_files(saved, worker)
    if damage is not None:
        raise UserError(f"{saved.uri} is damaged: {damage}. Use another with --checkpoint PATH.")
    model = shard(experiment, model_inputs(experiment, manifest.table_rows), worker)
    restore_weights(model, saved, run_settings(experiment, manifest, worker), worker)
    return model, saved
