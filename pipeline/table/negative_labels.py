"""Negative labels of tasks whose loss takes only amounts: in the train split they would end training in a NaN."""

import logging

from models.loss_config import LOSSES
from pipeline.config.logs import TaskConfig
from pipeline.config.table_experiment import TableExperiment
from pipeline.errors import UserError
from pipeline.table.manifest import Manifest
from pipeline.table.split_content import SplitContent, split_contents

logger = logging.getLogger(__name__)


def describe_negative_labels(task: TaskConfig, splits: list[SplitContent]) -> str:
    """The negative labels of a task under a loss of amounts, and what to do; empty without such labels."""
    found = [f"{n:,} in {s.name}" for s in splits if (n := s.content.tasks[task.name].negative)]
    if not found or not task.loss_facts.of_amounts:
        return ""
    others = " or ".join(name for name, facts in LOSSES.items() if not facts.of_amounts and not facts.of_logarithms)
    return (
        f"task {task.name}: the column {task.column!r} has negative labels ({', '.join(found)}), and the loss "
        f"{task.loss} takes only 0 or more. Set tasks.{task.name}.loss to {others}, or correct these rows in the log "
        "and run `manygate preprocess EXPERIMENT --overwrite`."
    )


def check_labels(sections: TableExperiment, manifest: Manifest) -> None:
    """Checks the labels of tasks under a loss of amounts. Partitions of earlier versions have no counts: they pass.

    There is a warning instead for other splits than train, where negative labels only affect metrics, and if all
    negative labels may be in rows of weight 0, which are not trained on.

    Raises:
        UserError: labels of the train split are negative.
    """
    splits = split_contents(manifest)
    for task in sections.tasks:
        train = [split for split in splits if split.name == "train"]
        in_train = describe_negative_labels(task, train)
        labels = [split.content.tasks[task.name] for split in train]
        if in_train and any(found.negative > found.weightless for found in labels):
            raise UserError(in_train)
        anywhere = describe_negative_labels(task, splits)
        if anywhere:
            logger.warning("%s", anywhere)


def tasks_to_suspect(sections: TableExperiment, manifest: Manifest) -> list[str]:
    """The tasks of which a negative label may be trained on, although their loss takes only amounts."""
    train = [split for split in split_contents(manifest) if split.name == "train"]
    is_counted = bool(train) and train[0].is_whole
    return [
        task.name
        for task in sections.tasks
        if task.loss_facts.of_amounts and not (is_counted and not train[0].content.tasks[task.name].negative)
    ]
