"""References: single-scenario, single-task models, which show negative transfer.

There is one for each named value of the first scenario level and each task.
"""

import logging
import re
from collections.abc import Callable
from itertools import chain

import numpy as np
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.comparison.variants import placed, trunk_section
from pipeline.config.experiment import Experiment
from pipeline.config.load import parse_experiment
from pipeline.config.logs import ScenarioConfig, TaskConfig
from pipeline.config.table_experiment import RUN_NAME
from pipeline.metrics.registry import PRIMARY
from pipeline.table.manifest import SCENARIO, Manifest

log = logging.getLogger(__name__)

REFERENCE_STEPS = 50
"""Least number of steps per epoch of a reference, unless its batches would become too small."""
SMALLEST_BATCH = 128

TaskScenario = tuple[str, str]  # a task and the label of a scenario


def make_references(base: Experiment) -> dict[TaskScenario, Experiment]:
    """A reference for each named value of the first scenario level and each task that exists there.

    See `single_task_reference`. A task with `quantiles_within` has none.
    """
    level, folder = base.scenarios[0], storage.join(base.folder, "compare", "reference")
    comparable = [task for task in base.tasks if task.quantiles_within is None]
    for task in base.tasks:
        if task not in comparable:
            log.warning(
                "No references for %s: quantiles_within would be fitted on the rows of one scenario, so that RMSE "
                "would be that of other quantiles.",
                task.name,
            )
    references = {}
    for i, value in enumerate(level.values):
        name = f"{level.name}-{value}"
        if not re.fullmatch(RUN_NAME, name):
            name = f"{re.sub('[^A-Za-z0-9_.-]', '_', name)}-{i}"
        for task in comparable:
            if not exists_in(task, level, value):
                continue
            experiment = single_task_reference(base, value, task)
            table = storage.join(folder, f"{name}-table")
            references[task.name, level.labels[i]] = placed(experiment, folder, f"{name}-{task.name}", table)
    return references


def single_task_reference(experiment: Experiment, value: int | str, task: TaskConfig) -> Experiment:
    """A single-scenario, single-task DNN: the quality that a task reaches in a scenario without sharing.

    It is the reference for negative transfer: a model of all scenarios and tasks that is worse than it in a cell
    shows negative transfer there. Its rows are those of the experiment with one value of the first scenario level;
    lower levels stay only if they drop rows or labels, so that both are measured on the same labels. Tasks that do not
    exist in the scenario are left out. Bottom, head and training are
    the experiment's; the trunk is a plain MLP, the task is predicted directly, and the other tasks have weight 0.

    Args:
        experiment: the reference is compared with its models.
        value: of the first scenario level.
        task: the task to train; early stopping uses its AUC or RMSE.
    """
    level, *below = experiment.scenarios
    data = experiment.model_dump(mode="json")
    tasks = {other.name: other for other in experiment.tasks if exists_in(other, level, value)}
    named = {name for other in tasks.values() for name in other.only}
    dropping = [s.model_dump(mode="json") for s in below if s.other == "drop" or s.name in named]
    data["tasks"] = [section for section in data["tasks"] if section["name"] in tasks]
    negatives = experiment.logs.negatives
    if negatives is not None and negatives.task not in tasks:
        data["logs"]["negatives"] = None
    data["scenarios"] = [{**level.model_dump(mode="json"), "values": [value], "other": "drop"}, *dropping]
    for section in data["tasks"]:
        section["weight"] = 1.0 if section["name"] == task.name else 0.0
        section["only"] |= {level.name: [value]} if level.name in section["only"] else {}
        section["after"] = section["after"] if section["after"] in tasks else None
    data["model"].pop("objective", None)  # how tasks are weighed against each other
    data["model"]["trunk"] = trunk_section(experiment, "shared_bottom")
    data["model"]["head"]["conversion"] = "direct"
    if data["training"]["early_stopping"]:
        data["training"]["early_stopping"]["metric"] = f"{task.name}.{PRIMARY[task.kind]}"
    return parse_experiment(data, f"The reference of {level.name}={value} and {task.name}")


def exists_in(task: TaskConfig, level: ScenarioConfig, value: int | str) -> bool:
    """Whether a task exists in a scenario of a level."""
    only = task.only.get(level.name)
    return only is None or level.label_of(value) in map(level.label_of, only)


def with_enough_steps(experiment: Experiment, rows: int, rows_of_all: int) -> Experiment:
    """The reference adapted to its rows: smaller batches if an epoch has too few steps, other numbers in proportion.

    Args:
        experiment: of a reference, with the training section of the experiment that it is compared with.
        rows: of its train split.
        rows_of_all: of the train split of that experiment. Warm-up and steps between validations stay the same share
            of an epoch.
    """
    training = experiment.training
    size = training.global_batch_size
    while rows < REFERENCE_STEPS * size and size % (2 * experiment.table.lanes) == 0 and size >= 2 * SMALLEST_BATCH:
        size //= 2
    share = (rows / size) / (rows_of_all / training.global_batch_size)
    every, warmup = training.validate_every_steps, training.schedule.warmup_steps
    update = {
        "global_batch_size": size,
        "schedule": training.schedule.model_copy(update={"warmup_steps": round(warmup * share)}),
        "validate_every_steps": None if every is None else max(round(every * share), 1),
    }
    return experiment.model_copy(update={"training": training.model_copy(update=update)})


def prepare_references(
    references: dict[TaskScenario, Experiment],
    base: Experiment,
    manifest: Manifest,
    split: str,
    prepare_table: Callable[[Experiment], Manifest],
) -> dict[TaskScenario, Experiment]:
    """Makes the feature tables of the references and adapts the references to their rows.

    References of scenarios without rows in a split are left out with a warning: there is nothing to learn or measure.

    Args:
        references: of all scenarios.
        base: the experiment that they are compared with.
        manifest: of its feature table.
        split: the split to evaluate.
        prepare_table: makes an experiment's feature table if it is not finished, and returns its manifest.
    """
    ready: dict[TaskScenario, Experiment] = {}
    counts = {name: rows_by_scenario(base, manifest, name) for name in base.logs.splits} if references else {}
    for (task, label), experiment in references.items():
        index = base.scenarios[0].labels.index(label)
        empty = [name for name, of_scenario in counts.items() if not of_scenario[index]]
        if empty:
            log.warning("%s has no rows in the split %s: no reference for %s.", label, ", ".join(empty), task)
            continue
        folder_name = storage.name(experiment.table_folder)
        table = prepare_table(experiment.model_copy(update={"name": folder_name}))  # with its experiment.yaml in it
        own, expected = table.rows(split), counts[split][index]
        if own != expected:
            log.warning(
                f"The reference of {label} is measured on {own:,} rows of the {split} split, the variants on "
                f"{expected:,}: the logs have changed since one of the tables was made, or one table had to leave out "
                "rows."
            )
        ready[task, label] = with_enough_steps(experiment, table.rows("train"), manifest.rows("train"))
    return ready


def rows_by_scenario(experiment: Experiment, manifest: Manifest, split: str) -> list[int]:
    """Number of rows of a split in each scenario of the first level."""
    level = experiment.scenarios[0]
    counts = np.zeros(len(level.labels), np.int64)
    for file in chain.from_iterable(chain.from_iterable(partition.lanes for partition in manifest.split(split))):
        filesystem, path = storage.resolve(storage.join(experiment.table_folder, file.path))
        column = pq.read_table(path, columns=[SCENARIO + level.name], filesystem=filesystem, partitioning=None)[0]
        counts += np.bincount(column.to_numpy(), minlength=len(counts))
    return counts.tolist()
