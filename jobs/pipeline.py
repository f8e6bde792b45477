"""`manygate pipeline`: logs to report in one job, which skips what is done and continues where it was interrupted."""

import signal

from cluster.connect import connect
from jobs import evaluate, report
from pipeline import storage
from pipeline.checkpoint.choice import AUTO, LATEST, CheckpointChoice
from pipeline.checkpoint.format import find_checkpoint
from pipeline.config.experiment import Experiment
from pipeline.errors import UserError
from pipeline.preprocess.run_table import make_run_table
from pipeline.report.page import is_report_current
from pipeline.scoring.checkpoint_evaluation import default_choice, is_evaluated
from pipeline.sharding.optimizers import check_weight_decay
from pipeline.table.manifest import MANIFEST, Manifest, read_manifest
from pipeline.training.run import train
from pipeline.training.windows import training_ending
from pipeline.workers.launch import Launcher, is_torchrun
from pipeline.workers.stop import INTERRUPTED_EXIT_CODE, InterruptedRunError, exit_on_sigterm
from pipeline.workers.worker_count import Workers

STAGES = ("preprocessing", "training", "evaluation", "report")


def run(experiment: Experiment, checkpoint: str | None, split: str | None, launcher: str, workers: Workers) -> int:
    """Runs the stages that are not done; returns 0, or `INTERRUPTED_EXIT_CODE` when a SIGTERM ended a stage."""
    if is_torchrun():
        raise UserError("pipeline starts its workers itself: use --launcher ray --workers N in place of torchrun.")
    names = experiment.logs.splits
    if split is not None and split not in names:
        raise UserError(f"--split {split}: the experiment has no such split in logs.splits; it has {', '.join(names)}.")
    split = split or next((name for name in ("test", "valid") if name in names), None)
    with exit_on_sigterm() as stop:
        on_workers = Launcher(launcher, workers, connect, stop)
        on_workers.check(experiment.table.lanes)
        if find_checkpoint(experiment.checkpoint_folder, LATEST) is None:
            check_weight_decay(experiment.training.sparse_optimizer)  # before the table is made
        try:
            manifest = make_table(experiment)
            stop.check()
            train_model(experiment, manifest, on_workers)
            stop.check()
            if split is None:
                say("evaluation", "none, because logs.splits has neither test nor valid")
            else:
                choice = CheckpointChoice.parse(checkpoint) if checkpoint else default_choice(experiment)
                evaluate_split(experiment, manifest, choice, split, on_workers)
            stop.check()  # Ray's workers finish an evaluation
            write_page(experiment)
        except (SystemExit, InterruptedRunError) as request:  # a SystemExit of ours; or, while Ray starts, of its own
            if isinstance(request, SystemExit) and not stop.is_for_good and request.code != signal.SIGTERM:
                raise
            return interrupted()
    return 0


def interrupted() -> int:
    print("Interrupted. The same command continues here.", flush=True)
    return INTERRUPTED_EXIT_CODE


def make_table(experiment: Experiment) -> Manifest:
    def begin() -> None:
        say("preprocessing", "started")
        connect()

    table = experiment.table_folder
    before = read_manifest(table) if storage.exists(storage.join(table, MANIFEST)) else None
    summary, manifest = make_run_table(experiment, False, begin), read_manifest(table)
    say("preprocessing", f"done already, {table}" if manifest == before else f"done\n{summary}")
    return manifest


def train_model(experiment: Experiment, manifest: Manifest, launcher: Launcher) -> None:
    ending = training_ending(experiment, manifest)
    say("training", "started" if ending is None else f"done already, {ending}")
    if ending is None and train(experiment, launcher, AUTO) == "interrupted":
        raise InterruptedRunError


def evaluate_split(
    experiment: Experiment, manifest: Manifest, choice: CheckpointChoice, split: str, launcher: Launcher
) -> None:
    saved = find_checkpoint(experiment.checkpoint_folder, choice)
    what = f"the checkpoint {choice} on the split {split}"
    if saved is not None and is_evaluated(experiment, manifest, saved, split):
        say("evaluation", f"done already, {what}")
        return
    say("evaluation", f"started, {what}")
    evaluate.run_on(launcher, experiment, str(choice), split)


def write_page(experiment: Experiment) -> None:
    is_done = is_report_current(experiment.folder)
    say("report", "done already" if is_done else "started")
    if not is_done:
        report.run(experiment)


def say(stage: str, text: str) -> None:
    print(f"[{STAGES.index(stage) + 1}/{len(STAGES)}] {stage}: {text}", flush=True)
