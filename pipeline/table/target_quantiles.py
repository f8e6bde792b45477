"""The quantiles of labels that a feature table was made with, for tasks with `quantiles_within`."""

from pipeline.config.logs import TaskConfig
from pipeline.config.table_experiment import TableExperiment
from pipeline.features.group_quantiles import GroupQuantiles

TargetQuantiles = dict[str, GroupQuantiles]
"""By the name of the task; only tasks with `quantiles_within`."""


def tasks_with_quantiles(sections: TableExperiment) -> list[TaskConfig]:
    return [task for task in sections.tasks if task.quantiles_within is not None]


def quantiles_name(task: TaskConfig) -> str:
    """Name of the encoder file; no feature can have it."""
    return f"quantiles-{task.name}"


def load_target_quantiles(sections: TableExperiment, table: str) -> TargetQuantiles:
    return {task.name: GroupQuantiles.read(table, quantiles_name(task)) for task in tasks_with_quantiles(sections)}
