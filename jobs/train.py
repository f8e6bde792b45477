"""`manygate train`: feature table in, checkpoints and metrics out."""

import logging
from functools import partial
from typing import Any

import torch

from jobs.launching import checkpoint_choice, launch_on_workers, read_table
from pipeline import storage
from pipeline.checkpoint.format import (
    START_OVER_HINT,
    Checkpoint,
    check_files,
    complete_checkpoints,
    find_checkpoint,
    withdraw,
)
from pipeline.checkpoint.progress import Ending, Progress, TrainingWindow
from pipeline.config.experiment import Experiment
from pipeline.config.load import dump_experiment
from pipeline.errors import UserError
from pipeline.evaluation.run import SplitEvaluation
from pipeline.evaluation.split_metrics import is_better, metric_value
from pipeline.loading.order import lane_rows, steps_per_epoch
from pipeline.loading.reader import Reader, check_division
from pipeline.sharding.model_inputs import batch_columns, model_inputs
from pipeline.sharding.shard import describe_plan, shard
from pipeline.table.manifest import Manifest, read_manifest
from pipeline.training.metrics_log import RunLog
from pipeline.training.running_metrics import RunningMetrics
from pipeline.training.state import RunState, run_settings, seed_worker
from pipeline.training.trainer import Criterion, Trainer
from pipeline.workers.launch import Workers
from pipeline.workers.stop import INTERRUPTED_EXIT_CODE
from pipeline.workers.watchdog import watched
from pipeline.workers.worker import Worker

log = logging.getLogger(__name__)


def run(experiment: Experiment, launcher: str, workers: Workers, resume: str) -> int:
    """Trains on the chosen launcher.

    Returns:
        The exit code: 0, or `stop.EXIT_CODE` when a SIGTERM ended the run after a checkpoint.
    """
    read_table(experiment)  # told before anything is started
    choice = checkpoint_choice(resume)
    choose_checkpoint(experiment, choice)
    ending = launch_on_workers(train_on_worker, experiment, launcher, workers, resume=choice)
    return INTERRUPTED_EXIT_CODE if ending == "interrupted" else 0


def train_on_worker(worker: Worker, experiment: Experiment, resume: str) -> Ending:
    """What one worker does from start to end."""
    with watched(worker, experiment.training.hang_timeout_s):
        manifest = read_manifest(experiment.table_folder)
        saved = sound_checkpoint(experiment, choice_of_attempt(worker, resume), worker)
        state = fresh_state(experiment, manifest, worker)
        settings = run_settings(experiment, manifest, worker)
        continue_from(saved, state, settings, manifest)
        if saved is not None:
            worker.on_first(lambda: withdraw_later(experiment, saved))
        save_experiment(experiment, worker)
        return train_spans(experiment, state, settings, manifest)


def choice_of_attempt(worker: Worker, resume: str) -> str:
    """What `--resume` means for workers that Ray has started again: what their run has saved comes first."""
    is_own = worker.has_saved or (worker.attempt > 0 and resume == "never")
    return "auto" if is_own else resume


def train_spans(experiment: Experiment, state: RunState, settings: dict[str, Any], manifest: Manifest) -> Ending:
    """Trains to the end of the span that the run is in, and then on the partitions that have come since."""
    worker, training = state.worker, experiment.training
    opened: list[RunLog] = []
    worker.on_first(lambda: opened.append(RunLog(experiment.folder, state.progress.step)))
    run_log = opened[0] if opened else None
    validation = split_validation(experiment, state, manifest, worker)
    trainer = Trainer(experiment, state, settings, run_log, validation, criterion_of(experiment))
    try:
        while True:
            span, ending = state.progress.span, state.progress.ending(training)
            total = span.first_step + span.total_steps(training)
            if run_log:
                run_log.expect(total)
            if ending is None:
                ending = trainer.train(train_reader(experiment, manifest, worker, span))
            if ending == "interrupted" or not go_on_with_new_partitions(experiment, state, manifest):
                if worker.is_first:
                    log.info("Training %s at step %d of %d.", ending, state.progress.step, total)
                return ending
    finally:
        if run_log:
            run_log.close()


def go_on_with_new_partitions(experiment: Experiment, state: RunState, manifest: Manifest) -> bool:
    """Begins a span of the partitions of the train split that no span has trained on; False where there are none."""
    train, progress = manifest.digests("train"), state.progress
    known = progress.partitions
    new = {value: digest for value, digest in train.items() if known.get(value) != digest}
    if not new:
        return False
    progress.go_on_with(make_span(experiment, manifest, new, progress.step))
    if state.worker.is_first:
        log.info("Going on with what is new in the train split: %s.", ", ".join(new))
    return True


def make_span(
    experiment: Experiment, manifest: Manifest, partitions: dict[str, str], first_step: int
) -> TrainingWindow:
    """A span of these partitions, value -> digest."""
    lanes = lane_rows(manifest.only("train", partitions), "train")
    steps = steps_per_epoch(lanes, experiment.training.global_batch_size // manifest.lanes)
    return TrainingWindow(partitions, steps, first_step)


def save_experiment(experiment: Experiment, worker: Worker) -> None:
    """Saves the resolved experiment in the run's folder. Collective.

    Raises:
        UserError: some workers do not see it there, so their parts of a checkpoint would be lost.
    """
    file = storage.join(experiment.folder, "experiment.yaml")
    worker.on_first(lambda: storage.write_text(file, dump_experiment(experiment)))
    seen = int(worker.sum(torch.tensor(int(storage.exists(file)))))
    if seen < worker.workers:
        raise UserError(
            f"Only {seen} of {worker.workers} workers see {experiment.folder}: `output` must be a folder that all "
            "machines share, or a URI of object storage such as s3://bucket/runs."
        )


def train_reader(experiment: Experiment, manifest: Manifest, worker: Worker, span: TrainingWindow) -> Reader:
    return Reader(
        experiment.table_folder,
        manifest.only("train", span.partitions),
        "train",
        batch_columns(experiment, model_inputs(experiment, manifest.table_rows)),
        global_batch_size=experiment.training.global_batch_size,
        rank=worker.rank,
        workers=worker.workers,
        seed=experiment.training.seed,
        shuffle_rows=experiment.training.shuffle_rows,
        first_step=span.first_step,
    )


def fresh_state(experiment: Experiment, manifest: Manifest, worker: Worker) -> RunState:
    """The state of a run that has not begun: model sharded and initialised, generators seeded."""
    inputs = model_inputs(experiment, manifest.table_rows)
    model = shard(experiment, inputs, worker)
    seed_worker(experiment.training.seed, 0, worker)
    if worker.is_first:
        for line in describe_plan(model.plan):
            log.info("  table %s", line)
    binary = [i for i, task in enumerate(inputs.tasks) if task.kind == "binary"]
    window = RunningMetrics([task.name for task in inputs.tasks], binary, model.diagnostics, worker)
    check_division(manifest.lanes, worker.workers, experiment.training.global_batch_size)
    progress = Progress(make_span(experiment, manifest, manifest.digests("train"), first_step=0))
    return RunState(model, window, progress, worker)


def choose_checkpoint(experiment: Experiment, resume: str) -> Checkpoint | None:
    """The checkpoint that `--resume` means; None to start afresh."""
    folder = experiment.checkpoint_folder
    if resume == "never":
        if storage.list_folder(folder):
            raise UserError(
                f"--resume never, but {folder} holds checkpoints of an earlier run, and two runs would mix there: "
                "delete that folder, or give this run another `name`."
            )
        return None
    return find_checkpoint(folder, "latest" if resume == "auto" else resume)


def sound_checkpoint(experiment: Experiment, resume: str, worker: Worker) -> Checkpoint | None:
    """The checkpoint that `--resume` means, after a look at all of its files. Collective.

    With ``auto`` a damaged one is passed over for the one before it.

    Raises:
        UserError: the one that is asked for is damaged, or all of them are.
    """
    chosen = worker.on_first(lambda: choose_checkpoint(experiment, resume))
    damages = []
    while chosen is not None:
        damage = check_files(chosen, worker)
        if damage is None:
            return chosen
        damages.append(f"{chosen.uri} is damaged: {damage}")
        if resume != "auto":
            raise UserError(f"{damages[0]}. Use another checkpoint, or --resume auto to take the newest sound one.")
        if worker.is_first:
            log.warning("The checkpoint %s. The one before it is taken.", damages[-1])
        chosen = worker.on_first(partial(last_before, experiment, chosen.step))
    if damages:
        raise UserError(
            f"None of the {len(damages)} checkpoints in {experiment.checkpoint_folder} can be used; "
            f"{'; '.join(damages[:3])}. To start afresh: {START_OVER_HINT}."
        )
    return None


def last_before(experiment: Experiment, step: int) -> Checkpoint | None:
    earlier = [saved for saved in complete_checkpoints(experiment.checkpoint_folder) if saved.step < step]
    return earlier[-1] if earlier else None


def continue_from(saved: Checkpoint | None, state: RunState, settings: dict, manifest: Manifest) -> None:
    """Restores and says what was found and where the run goes on."""
    lines = ["No checkpoint found: starting at step 0."]
    if saved is not None:
        restored = state.restore(saved, settings, manifest.digests("train"))
        position, changed = state.progress.position, "; ".join(restored.changes)
        how = f"with the same samples, but not bit by bit: {changed}." if changed else "exactly."
        if restored.gained:
            how = f"grown by {restored.gained}."
        where = f"step {state.progress.step} (epoch {position.epoch}, batch {position.step})"
        lines = [f"Resumed from {saved.uri}: going on at {where}, {how}"]
        if restored.grown:
            lines += ["All of it is kept, moments included. New, and as initialised:", *restored.grown]
    if state.worker.is_first:
        for line in lines:
            log.info(line)


def withdraw_later(experiment: Experiment, saved: Checkpoint) -> None:
    """Deletes the run's checkpoints of later steps than the one it goes on from: they are of an abandoned branch."""
    own = complete_checkpoints(experiment.checkpoint_folder)
    if saved.uri not in [checkpoint.uri for checkpoint in own]:
        return
    for later in own:
        if later.step > saved.step:
            log.info("The later checkpoint %s is deleted: the run goes on from an earlier one.", later.uri)
            withdraw(later.uri)


def split_validation(
    experiment: Experiment, state: RunState, manifest: Manifest, worker: Worker
) -> SplitEvaluation | None:
    if "valid" not in experiment.logs.splits:
        return None
    return SplitEvaluation(experiment, state.model.module, experiment.table_folder, manifest, "valid", worker)


def criterion_of(experiment: Experiment) -> Criterion | None:
    """How validations are compared, where the experiment names a metric for it."""
    stopping = experiment.training.early_stopping
    if stopping is None:
        return None
    metric = stopping.metric
    return Criterion(
        value=lambda evaluation: metric_value(evaluation, metric),
        is_better=lambda new, best: is_better(metric, new, best),
    )
