"""Makes training windows from the partitions of the train split, and the reader of a window."""

import logging

from pipeline.checkpoint.choice import LATEST
from pipeline.checkpoint.format import find_checkpoint
from pipeline.checkpoint.progress import Ending, Progress, TrainingWindow
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


def new_partitions(progress: Progress, manifest: Manifest) -> dict[str, str]:
    """The partitions of the train split that the run has not begun to train on, value -> digest."""
    known = progress.partitions
    return {value: digest for value, digest in manifest.digests("train").items() if known.get(value) != digest}


def begin_new_partitions(experiment: Experiment, state: RunState, manifest: Manifest) -> bool:
    """Begins a window of the train split's partitions that are in no window yet; returns False if there are none."""
    progress, schedule = state.progress, experiment.training.schedule
    new = new_partitions(progress, manifest)
    if not new:
        return False
    progress.begin_window(make_training_window(experiment, manifest, new, progress.step))
    if state.worker.is_first:
        again = "" if schedule.decay == "constant" and not schedule.warmup_steps else "; the schedule starts again"
        log.info("Continuing with the new partitions of the train split: %s%s.", ", ".join(new), again)
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


def training_ending(experiment: Experiment, manifest: Manifest) -> Ending | None:
    """How the training of a run has ended; None if there is something to train, or if the model was changed since."""
    saved = find_checkpoint(experiment.checkpoint_folder, LATEST)
    if saved is None:
        return None
    state = saved.state()
    if state.experiment.model != experiment.model or new_partitions(state.progress, manifest):
        return None
    return state.progress.ending(experiment.training)
