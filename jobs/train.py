"""`manygate train`: feature table in, checkpoints and metrics out."""

import logging

import torch

from jobs.launching import checkpoint_choice, launch_on_workers, read_table
from pipeline import storage
from pipeline.config.experiment import Experiment
from pipeline.config.load import dump_experiment
from pipeline.errors import UserError
from pipeline.evaluation.evaluate import is_better, metric_value
from pipeline.evaluation.run import SplitEvaluation
from pipeline.loading.reader import Reader
from pipeline.table.manifest import Manifest, read_manifest
from pipeline.training.checkpoint import Saved, complete_checkpoints, find_checkpoint, withdraw
from pipeline.training.inputs import batch_columns, model_inputs
from pipeline.training.metrics_log import RunLog
from pipeline.training.progress import Progress
from pipeline.training.sharding import describe_plan, shard
from pipeline.training.state import RunState, run_settings, seed_worker
from pipeline.training.stop import EXIT_CODE
from pipeline.training.trainer import Criterion, Ending, Trainer, total_steps
from pipeline.training.window import TrainWindow
from pipeline.training.worker import Worker

log = logging.getLogger(__name__)


def run(experiment: Experiment, launcher: str, workers: int | None, resume: str) -> int:
    """Trains on the chosen launcher.

    Returns:
        The exit code: 0, or `stop.EXIT_CODE` when a SIGTERM ended the run after a checkpoint.
    """
    read_table(experiment)  # told before anything is started
    choice = checkpoint_choice(resume)
    choose_checkpoint(experiment, choice)
    ending = launch_on_workers(train_on_worker, experiment, launcher, workers, resume=choice)
    return EXIT_CODE if ending == "interrupted" else 0


def train_on_worker(worker: Worker, experiment: Experiment, resume: str) -> Ending:
    """What one worker does from start to end."""
    manifest = read_manifest(experiment.table_folder)
    reader = train_reader(experiment, manifest, worker)
    saved = worker.on_first(lambda: choose_checkpoint(experiment, resume))
    state = fresh_state(experiment, manifest, worker)
    validation = split_validation(experiment, state, manifest, worker)
    settings = run_settings(experiment, manifest, worker)
    continue_from(saved, state, settings)
    if saved is not None:
        worker.on_first(lambda: withdraw_later(experiment, saved))
    save_experiment(experiment, worker)
    run_log = (
        RunLog(experiment.folder, state.progress.step, total_steps(experiment, reader)) if worker.is_first else None
    )
    trainer = Trainer(experiment, state, reader, settings, run_log, validation, criterion_of(experiment))
    try:
        ending = trainer.train()
    finally:
        if run_log:
            run_log.close()
    if worker.is_first:
        log.info("Training %s at step %d of %d.", ending, state.progress.step, trainer.total_steps)
    return ending


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


def train_reader(experiment: Experiment, manifest: Manifest, worker: Worker) -> Reader:
    return Reader(
        experiment.table_folder,
        manifest,
        "train",
        batch_columns(experiment, model_inputs(experiment, manifest)),
        global_batch_size=experiment.training.global_batch_size,
        rank=worker.rank,
        workers=worker.workers,
        seed=experiment.training.seed,
        shuffle_rows=experiment.training.shuffle_rows,
    )


def fresh_state(experiment: Experiment, manifest: Manifest, worker: Worker) -> RunState:
    """The state of a run that has not begun: model sharded and initialised, generators seeded."""
    inputs = model_inputs(experiment, manifest)
    model = shard(experiment, inputs, worker)
    seed_worker(experiment.training.seed, 0, worker)
    if worker.is_first:
        for line in describe_plan(model.plan):
            log.info("  table %s", line)
    binary = [i for i, task in enumerate(inputs.tasks) if task.kind == "binary"]
    window = TrainWindow([task.name for task in inputs.tasks], binary, model.diagnostics, worker)
    return RunState(model, window, Progress(), worker)


def choose_checkpoint(experiment: Experiment, resume: str) -> Saved | None:
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


def continue_from(saved: Saved | None, state: RunState, settings: dict) -> None:
    """Restores and says what was found and where the run goes on."""
    if saved is None:
        message = "No checkpoint found: starting at step 0."
    else:
        changed = state.restore(saved, settings)
        position = state.progress.position
        message = (
            f"Resumed from {saved.uri}: going on at step {state.progress.step} "
            f"(epoch {position.epoch}, batch {position.step}), "
            + (f"with the same samples, but not bit by bit: {'; '.join(changed)}." if changed else "exactly.")
        )
    if state.worker.is_first:
        log.info(message)


def withdraw_later(experiment: Experiment, saved: Saved) -> None:
    """Deletes the run's checkpoints of later steps than the one it goes on from: they are of an abandoned branch."""
    own = complete_checkpoints(experiment.checkpoint_folder)
    if saved.uri not in [checkpoint.uri for checkpoint in own]:
        return
    for later in own:
        if later.step > saved.step:
            log.info("The later checkpoint %s is deleted: the run goes on from an earlier one.", later.uri)
            withdraw(later)


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
