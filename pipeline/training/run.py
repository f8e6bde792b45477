"""A training run from start to end: resumes from a checkpoint, builds its state, and trains window by window."""

import logging
from functools import partial

import torch

from pipeline import storage
from pipeline.checkpoint.choice import CheckpointChoice
from pipeline.checkpoint.format import Checkpoint
from pipeline.checkpoint.progress import Ending, Progress
from pipeline.checkpoint.resume import choice_of_attempt, choose_checkpoint, sound_checkpoint, withdraw_later
from pipeline.checkpoint.state_document import RunSettings
from pipeline.config.experiment import Experiment
from pipeline.config.lanes import check_division
from pipeline.config.load import dump_experiment
from pipeline.errors import UserError
from pipeline.evaluation.split_evaluation import SplitEvaluation
from pipeline.job_progress import JobProgress, SavedCheckpoint, reported
from pipeline.log_records import log_fields
from pipeline.sharding.model_inputs import label_summaries, model_inputs
from pipeline.sharding.optimizers import check_weight_decay
from pipeline.sharding.shard import describe_plan, shard
from pipeline.table.manifest import Manifest, read_manifest
from pipeline.table.negative_labels import check_labels, tasks_to_suspect
from pipeline.table.settings import read_table
from pipeline.training.criterion import criterion_of
from pipeline.training.metrics_log import RunLog
from pipeline.training.running_metrics import RunningMetrics
from pipeline.training.state import RunState, run_settings, seed_worker
from pipeline.training.trainer import Trainer
from pipeline.training.windows import begin_new_partitions, make_training_window, train_reader
from pipeline.workers.launch import Launcher
from pipeline.workers.watchdog import watched
from pipeline.workers.worker import Worker

log = logging.getLogger(__name__)


def train(experiment: Experiment, launcher: Launcher, resume: CheckpointChoice) -> Ending:
    """Trains on the launcher's workers.

    Raises:
        UserError: before workers are started, if there is no matching feature table, if its labels do not fit a loss,
            if there is no such checkpoint, or if the weight decay of the tables would be ignored; later for errors of
            `train_on_worker`.
    """
    check_weight_decay(experiment.training.sparse_optimizer)
    check_labels(experiment, read_table(experiment))
    choose_checkpoint(experiment, resume)
    return launcher.run(partial(train_on_worker, resume=resume), experiment)


def train_on_worker(worker: Worker, experiment: Experiment, resume: CheckpointChoice) -> Ending:
    """Runs training on one worker, from start to end."""
    log_fields.begin(experiment.name, worker.rank)
    with watched(worker, experiment.training.hang_timeout_s):
        manifest = read_manifest(experiment.table_folder)
        saved = sound_checkpoint(experiment, choice_of_attempt(worker, resume), worker)
        state = fresh_state(experiment, manifest, worker)
        settings = run_settings(experiment, manifest, worker)
        continue_from(saved, state, settings, manifest)
        if saved is not None:
            worker.on_first(lambda: withdraw_later(experiment, saved))
        save_experiment(experiment, worker)
        return train_windows(experiment, state, settings, manifest)


def train_windows(experiment: Experiment, state: RunState, settings: RunSettings, manifest: Manifest) -> Ending:
    """Trains to the end of the run's window, and then on partitions that have been added since."""
    worker, training = state.worker, experiment.training
    opened: list[RunLog] = []
    worker.on_first(lambda: opened.append(RunLog(experiment.folder, state.progress.step)))
    run_log = opened[0] if opened else None
    validation = split_validation(experiment, state, manifest, worker)
    trainer = Trainer(experiment, state, settings, run_log, validation, criterion_of(experiment))
    try:
        while True:
            window, ending = state.progress.window, state.progress.ending(training)
            total = window.first_step + window.total_steps(training)
            if run_log:
                run_log.expect(total)
            if ending is None:
                ending = trainer.train(train_reader(experiment, manifest, worker, window))
            if ending == "interrupted" or not begin_new_partitions(experiment, state, manifest):
                if worker.is_first:
                    log_ending(ending, state.progress.step, total)
                return ending
    finally:
        if run_log:
            run_log.close()


def log_ending(ending: Ending, step: int, total: int) -> None:
    """Logs how training has ended, after a step of so many in total: fewer than that if the experiment was changed."""
    where = f"step {step} of {total}" if step <= total else f"step {step}; the experiment asks for {total} only"
    reached = JobProgress(stage="training", step=step, total_steps=max(step, total))
    log.info("Training %s at %s.", ending, where, extra=reported(reached))


def save_experiment(experiment: Experiment, worker: Worker) -> None:
    """Saves the resolved experiment in the run's folder. Collective.

    Raises:
        UserError: some workers do not see the saved file, so their parts of a checkpoint would be lost.
    """
    worker.on_first(lambda: storage.write_text(experiment.file, dump_experiment(experiment)))
    seen = int(worker.sum(torch.tensor(int(storage.exists(experiment.file)))))
    if seen < worker.workers:
        raise UserError(
            f"Only {seen} of {worker.workers} workers see {experiment.folder}: `output` must be a folder that all "
            "machines share, or a URI of object storage such as s3://bucket/runs."
        )


def fresh_state(experiment: Experiment, manifest: Manifest, worker: Worker) -> RunState:
    """The state of a run at step 0: model sharded and initialised, generators seeded.

    The model starts where the labels of the train split are. If it is then loaded from a checkpoint, this concerns only
    the tasks that the checkpoint does not have.
    """
    inputs = model_inputs(experiment, manifest.table_rows, label_summaries(experiment, manifest))
    model = shard(experiment, inputs, worker)
    seed_worker(experiment.training.seed, 0, worker)
    if worker.is_first:
        for line in describe_plan(model.plan):
            log.info("  table %s", line)
    binary = [i for i, task in enumerate(inputs.tasks) if task.kind == "binary"]
    names = [task.name for task in inputs.tasks]
    suspects = tasks_to_suspect(experiment, manifest)
    running = RunningMetrics(names, binary, model.diagnostics, worker, experiment.has_task_weights, suspects)
    check_division(manifest.lanes, worker.workers, experiment.training.global_batch_size)
    progress = Progress(make_training_window(experiment, manifest, manifest.digests("train"), first_step=0))
    return RunState(model, running, progress, worker)


def continue_from(saved: Checkpoint | None, state: RunState, settings: RunSettings, manifest: Manifest) -> None:
    """Restores the state from a checkpoint, if there is one, and logs where and how the run continues."""
    lines, jump = ["No checkpoint found: starting at step 0."], None
    if saved is not None:
        restored = state.restore(saved, settings, manifest.digests("train"))
        position, changed = state.progress.position, "; ".join(restored.changes)
        is_exact = not changed and not restored.arithmetic
        how = "exactly." if is_exact else f"with the same samples, but not bit by bit{': ' * bool(changed)}{changed}."
        if restored.gained:
            how = f"grown by {restored.gained}."
        where = f"step {state.progress.step} (epoch {position.epoch}, batch {position.step})"
        lines, jump = [f"Resumed from {saved.uri}: continuing at {where}, {how}"], restored.jump
        if restored.arithmetic:
            lines.append(f"An earlier version made this checkpoint. {' '.join(restored.arithmetic)}")
        if restored.grown:
            lines += ["Everything in it is kept, moments included. New, and initialised:", *restored.grown]
    if state.worker.is_first:
        begun = JobProgress(stage="training", step=state.progress.step)
        if saved is not None:
            begun = begun.updated(JobProgress(checkpoint=SavedCheckpoint(step=saved.step, uri=saved.uri)))
        for line in lines:
            log.info(line, extra=reported(begun))
        if jump is not None:
            log.warning("%s", jump)


def split_validation(
    experiment: Experiment, state: RunState, manifest: Manifest, worker: Worker
) -> SplitEvaluation | None:
    if "valid" not in experiment.logs.splits:
        return None
    return SplitEvaluation(experiment, state.model.module, experiment.table_folder, manifest, "valid", worker)
