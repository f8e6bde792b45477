"""The smearing factors of a checkpoint: from the checkpoint, or estimated with its weights on the valid split."""

import logging

from pipeline.checkpoint.format import Checkpoint
from pipeline.config.experiment import Experiment
from pipeline.evaluation.log_unit import needs_smearing
from pipeline.evaluation.split_evaluation import SplitEvaluation
from pipeline.sharding.shard import ShardedModel
from pipeline.table.manifest import Manifest
from pipeline.workers.worker import Worker

log = logging.getLogger(__name__)

VALID = "valid"

SmearingByTask = dict[str, dict[str, float]]

_WITHOUT_ROWS = "and the feature table has none. Add `valid` to logs.splits and run `manygate preprocess`"
_WITHOUT_LABELS = (
    "and these have no total above 0 that could be compared with the predictions. Choose days with such labels as "
    "`valid` in logs.splits"
)


def smearing_of_checkpoint(
    experiment: Experiment, manifest: Manifest, model: ShardedModel, saved: Checkpoint, worker: Worker
) -> SmearingByTask:
    """The factors of every task whose predictions need them to be means. Collective.

    A checkpoint contains the factors of the last validation; those of another step belong to other weights. Without
    factors the predictions of a task are medians, of which a warning is logged.
    """
    tasks = tasks_that_need_smearing(experiment)
    if not tasks:
        return {}
    factors = saved_smearing(tasks, saved)
    if factors is None:
        factors = _estimated(experiment, manifest, model, saved, worker)
    medians = [task for task in tasks if not factors.get(task)]
    if medians and worker.is_first:
        log.warning(
            "Predictions of %s are medians, not means: the factors that turn medians into means are estimated on rows "
            "of the valid split with labels, %s, or set %s.",
            ", ".join(medians),
            _WITHOUT_LABELS if has_valid_rows(manifest) else _WITHOUT_ROWS,
            " ".join(f"tasks.{task}.prediction=median" for task in medians),
        )
    return factors


def tasks_that_need_smearing(experiment: Experiment) -> list[str]:
    """Names of the tasks whose predictions are means of transformed targets, without a deviation of their own."""
    return [task.name for task in experiment.tasks if needs_smearing(task) and task.prediction == "mean"]


def saved_smearing(tasks: list[str], saved: Checkpoint) -> SmearingByTask | None:
    """The factors of these tasks in a checkpoint; None if they are missing or of another step."""
    kept = saved.state().progress.smearing
    if kept is None or kept.step != saved.step or not kept.factors.keys() >= set(tasks):
        return None
    return kept.factors


def _estimated(
    experiment: Experiment, manifest: Manifest, model: ShardedModel, saved: Checkpoint, worker: Worker
) -> SmearingByTask:
    if not has_valid_rows(manifest):
        return {}
    if worker.is_first:
        log.info(
            "%s has no factors of its own step that turn medians into means: estimating them on the valid split.",
            saved.uri,
        )
    return SplitEvaluation(experiment, model.module, experiment.table_folder, manifest, VALID, worker).smearing()


def has_valid_rows(manifest: Manifest) -> bool:
    return any(partition.split == VALID and partition.kept for partition in manifest.partitions)
