"""Makes training windows from the partitions of the train split, and the reader of a window."""

import logging

from pipeline.checkpoint.progress import TrainingWindow
from pipeline.config.experiment import Experiment
from pipeline.loading.order import lane_rows, steps_per_epoch
from pipeline.loading.reader import Reader
from pipeline.sharding.model_inputs import batch_columns, model_inputs
from pipeline.table.manifest import Manifest
from pipeline.training.state import RunState
from pipeline.workers.worker import Worker

log = logging.getLogger(__name__)


def make_training_window(
    experiment: Experiment, manifest: Manifest, partitions: dict[str, str], first_step: int
) -> TrainingWindow:
    """A training window of these partitions, value -> digest."""
    lanes = lane_rows(manifest.only("train", partitions), "train")
    steps = steps_per_epoch(lanes, experiment.training.global_batch_size // manifest.lanes)
    return TrainingWindow(partitions, steps, first_step)


def begin_new_partitions(experiment: Experiment, state: RunState, manifest: Manifest) -> bool:
    """Begins a window of the train split's partitions that are in no window yet; returns False if there are none."""
    train, progress = manifest.digests("train"), state.progress
    known = progress.partitions
    new = {value: digest for value, digest in train.items() if known.get(value) != digest}
    if not new:
        return False
    progress.begin_window(make_training_window(experiment, manifest, new, progress.step))
    if state.worker.is_first:
        log.info("Continuing with the new partitions of the train split: %s.", ", ".join(new))
    return True


def train_reader(experiment: Experiment, manifest: Manifest, worker: Worker, window: TrainingWindow) -> Reader:
    """This worker's reader of a window."""
    return Reader(
        experiment.table_folder,
        manifest.only("train", window.partitions),
        "train",
        batch_columns(experiment, model_inputs(experiment, manifest.table_rows)),
        global_batch_size=experiment.training.global_batch_size,
        rank=worker.rank,
        workers=worker.workers,
        seed=experiment.training.seed,
        shuffle_rows=experiment.training.shuffle_rows,
        first_step=window.first_step,
    )
