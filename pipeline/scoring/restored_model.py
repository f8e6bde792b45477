"""An experiment's model with the weights of a checkpoint, for evaluation and prediction."""

from pipeline.checkpoint.checks import check_model, grown_tables
from pipeline.checkpoint.choice import CheckpointChoice
from pipeline.checkpoint.damage import check_files
from pipeline.checkpoint.format import Checkpoint, find_checkpoint
from pipeline.checkpoint.state_document import RunSettings
from pipeline.checkpoint.tensors import load_tensors
from pipeline.config.experiment import Experiment
from pipeline.errors import UserError
from pipeline.sharding.model_inputs import model_inputs
from pipeline.sharding.shard import ShardedModel, shard
from pipeline.table.manifest import Manifest
from pipeline.training.state import run_settings
from pipeline.workers.worker import Worker


def restored_model(
    experiment: Experiment, manifest: Manifest, checkpoint: CheckpointChoice, worker: Worker
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


def restore_weights(model: ShardedModel, checkpoint: Checkpoint, settings: RunSettings, worker: Worker) -> None:
    """Loads only the weights of a checkpoint, for evaluation. Collective.

    Raises:
        UserError: the checkpoint belongs to another table or model.
    """
    state = checkpoint.state()
    gained = check_model(checkpoint, state, settings)
    if gained:
        raise UserError(
            f"The checkpoint {checkpoint.uri} does not contain {gained}, which the experiment has now: run "
            "`manygate train` first, which continues from the checkpoint and trains the new parts."
        )
    tensors = {"model": model.module.state_dict()}
    load_tensors(checkpoint, tensors, worker, grown_tables(state, settings))
    model.module.load_state_dict(tensors["model"])
