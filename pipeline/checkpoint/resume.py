"""Finds the checkpoint that a training run resumes from, and deletes later checkpoints."""

import logging
from functools import partial

from pipeline.checkpoint.choice import AUTO, LATEST, NEVER, CheckpointChoice
from pipeline.checkpoint.damage import check_files
from pipeline.checkpoint.format import (
    START_OVER_HINT,
    Checkpoint,
    complete_checkpoints,
    find_checkpoint,
    withdraw,
)
from pipeline.config.experiment import Experiment
from pipeline.errors import UserError
from pipeline.storage import list_folder
from pipeline.workers.worker import Worker

log = logging.getLogger(__name__)


def choice_of_attempt(worker: Worker, resume: CheckpointChoice) -> CheckpointChoice:
    """The value of `--resume`; in later attempts `auto` instead of `never`, or if the run has saved a checkpoint."""
    is_own = worker.has_saved or (worker.attempt > 0 and resume == NEVER)
    return AUTO if is_own else resume


def choose_checkpoint(experiment: Experiment, resume: CheckpointChoice) -> Checkpoint | None:
    """The checkpoint that `--resume` names; None to start at step 0.

    Raises:
        UserError: the requested checkpoint is missing or incomplete, or the run has checkpoints despite `never`.
    """
    folder = experiment.checkpoint_folder
    if resume == NEVER:
        if list_folder(folder):
            raise UserError(
                f"--resume never, but {folder} has checkpoints of an earlier run, and the two runs would mix there: "
                "delete that folder, or give this run another `name`."
            )
        return None
    return find_checkpoint(folder, LATEST if resume == AUTO else resume)


def sound_checkpoint(experiment: Experiment, resume: CheckpointChoice, worker: Worker) -> Checkpoint | None:
    """The checkpoint that `--resume` names, after all of its files have been checked. Collective.

    With ``auto`` a damaged checkpoint is skipped and the one before it is used.

    Raises:
        UserError: the requested checkpoint is damaged, or all of them are.
    """
    chosen = worker.on_first(lambda: choose_checkpoint(experiment, resume))
    damages = []
    while chosen is not None:
        damage = check_files(chosen, worker)
        if damage is None:
            return chosen
        damages.append(f"{chosen.uri} is damaged: {damage}")
        if resume != AUTO:
            raise UserError(f"{damages[0]}. Use another checkpoint, or --resume auto to use the newest sound one.")
        if worker.is_first:
            log.warning("The checkpoint %s. The one before it is used.", damages[-1])
        chosen = worker.on_first(partial(last_before, experiment, chosen.step))
    if damages:
        raise UserError(
            f"None of the {len(damages)} checkpoints in {experiment.checkpoint_folder} can be used; "
            f"{'; '.join(damages[:3])}. To start over: {START_OVER_HINT}."
        )
    return None


def last_before(experiment: Experiment, step: int) -> Checkpoint | None:
    earlier = [saved for saved in complete_checkpoints(experiment.checkpoint_folder) if saved.step < step]
    return earlier[-1] if earlier else None


def withdraw_later(experiment: Experiment, saved: Checkpoint) -> None:
    """Deletes checkpoints of the run that are later than the one it resumes from: they are of an abandoned branch."""
    own = complete_checkpoints(experiment.checkpoint_folder)
    if saved.uri not in [checkpoint.uri for checkpoint in own]:
        return
    for later in own:
        if later.step > saved.step:
            log.info("The later checkpoint %s is deleted: the run resumes from an earlier one.", later.uri)
            withdraw(later.uri)
