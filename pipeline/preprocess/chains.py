"""Tasks that come after another task: whether they have labels in rows where the other did not happen."""

import logging
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from pipeline.config.table_experiment import TableExperiment
from pipeline.preprocess.rows import labels
from pipeline.preprocess.sources import Sources
from pipeline.preprocess.units import UnitRows

logger = logging.getLogger(__name__)


def labels_after_zero(
    sections: TableExperiment, sources: Sources, rows: UnitRows, kept: NDArray[np.int64]
) -> dict[str, list[int]]:
    """Counts the train rows in which the label of a task's predecessor is 0.

    Returns:
        For each binary task that may lack labels and comes after another: such rows with a label, and without one.
    """
    tasks = {task.name: task for task in sections.tasks}
    counts = {}
    for task in tasks.values() if rows.split == "train" else []:
        if task.after is not None and task.kind == "binary" and task.may_lack_labels:
            after_zero = kept[labels(sections, tasks[task.after], sources, rows)[kept] == 0]
            missing = np.isnan(labels(sections, task, sources, rows)[after_zero])
            counts[task.name] = [int((~missing).sum()), int(missing.sum())]
    return counts


def report_conditional_tasks(sections: TableExperiment, counts: list[dict[str, list[int]]]) -> None:
    """Names tasks whose labels exist only where their predecessor happened: they predict for such rows alone."""
    with_label, without = Counter[str](), Counter[str]()
    for unit in counts:
        for name, (some, none) in unit.items():
            with_label[name] += some
            without[name] += none
    for task in sections.tasks:
        if without[task.name] and not with_label[task.name]:
            logger.info(
                "task %s: none of the %s train rows in which %s is 0 has a label of it, so its predictions are for "
                "rows in which %s is 1. For the probability over all rows, its label must be 0 there: see "
                "docs/logs.md.",
                task.name,
                f"{without[task.name]:,}",
                task.after,
                task.after,
            )
