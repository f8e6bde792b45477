"""Derives a model's inputs and a batch's columns from the experiment and the feature table."""

import math
from collections.abc import Mapping

from models.inputs import LabelSummary, ModelInputs, Task
from pipeline.config.experiment import Experiment
from pipeline.config.logs import TaskConfig
from pipeline.loading.batch_columns import BatchColumns
from pipeline.table.content import AfterCounts, LabelSums, TaskContent, merged
from pipeline.table.manifest import Manifest

_MOST = 0.99
"""Largest ratio of two rates that is used as a rate."""


def model_inputs(
    experiment: Experiment, table_rows: Mapping[str, int], labels: Mapping[str, LabelSummary] | None = None
) -> ModelInputs:
    """What a model is built from.

    Args:
        experiment: its features, scenarios and tasks.
        table_rows: `Manifest.table_rows`, rows of the embedding tables.
        labels: of tasks by name, for a model that begins to train.
    """
    labels = labels or {}
    tables = [feature.embedding_table(table_rows) for feature in experiment.features]
    features = [feature.model_feature for feature in experiment.features]
    names = [task.name for task in experiment.tasks]
    return ModelInputs(
        tables=tuple(table for table in tables if table is not None),
        features=tuple(feature for feature in features if feature is not None),
        numerics=len(standardised(experiment)),
        scenarios=tuple(tuple(scenario.labels) for scenario in experiment.scenarios),
        tasks=tuple(
            Task(
                name=t.name,
                kind=t.kind,
                after=names.index(t.after) if t.after is not None else None,
                weight=t.weight,
                loss=t.loss_config,
                labels=labels.get(t.name),
            )
            for t in experiment.tasks
        ),
        levels=tuple(scenario.name for scenario in experiment.scenarios),
    )


def label_summaries(experiment: Experiment, manifest: Manifest) -> dict[str, LabelSummary]:
    """The labels of the train split by task, without tasks that have none, and without partitions that an earlier
    version has made."""
    contents = [partition.content for partition in manifest.split("train") if partition.content is not None]
    found = merged(contents).tasks if contents else {}
    sums = {name: content.sums for name, content in found.items() if content.sums is not None}
    return {
        task.name: label_summary(sums[task.name], _rate_after(task, found, sums))
        for task in experiment.tasks
        if task.name in sums and sums[task.name].weight > 0
    }


def label_summary(sums: LabelSums, rate_after: float) -> LabelSummary:
    mean = sums.sum / sums.weight
    log_mean = sums.log_sum / sums.positive if sums.positive else 0.0
    return LabelSummary(
        mean=mean,
        deviation=math.sqrt(max(sums.squares / sums.weight - mean**2, 0.0)),
        rate=_rate(sums),
        rate_after=rate_after,
        log_mean=log_mean,
        log_deviation=math.sqrt(max(sums.log_squares / sums.positive - log_mean**2, 0.0)) if sums.positive else 1.0,
    )


def _rate_after(task: TaskConfig, found: Mapping[str, TaskContent], sums: Mapping[str, LabelSums]) -> float:
    """The rate of a task in the rows in which the task that it comes after happened.

    If `after` was changed since the rows were counted, it is the ratio of both rates.
    """
    rate = _rate(sums[task.name])
    if task.after is None:
        return rate
    counts = found[task.name].after.get(task.after)
    if counts is not None:
        return _rate(counts)
    return min(rate / _rate(sums[task.after]), _MOST) if task.after in sums else rate


def _rate(counts: LabelSums | AfterCounts) -> float:
    """The share of labels above zero, with half a row more on each side, so that it is never 0 or 1."""
    row = counts.weight / counts.rows if counts.weight else 1.0  # the weight of an average row
    return (counts.positive + row / 2) / (counts.weight + row)


def batch_columns(
    experiment: Experiment, inputs: ModelInputs, keys: tuple[str, ...] = (), with_references: bool = False
) -> BatchColumns:
    """The columns of a batch, in the order that the model expects.

    Args:
        experiment: of the run.
        inputs: of its model.
        keys: key columns.
        with_references: whether batches have the columns that targets depend on, which training does not need.
    """
    return BatchColumns(
        ids=tuple(feature.name for feature in inputs.pooled_features),
        sequences=tuple(feature.name for feature in inputs.jagged_features),
        numerics=standardised(experiment),
        tasks=tuple(task.name for task in experiment.tasks),
        scenarios=tuple(scenario.name for scenario in experiment.scenarios),
        keys=keys,
        has_weights=experiment.has_weights,
        may_lack_labels=any(task.may_lack_labels for task in experiment.tasks),
        relative=frozenset(t.name for t in experiment.tasks if with_references and t.reference is not None),
        weighted=frozenset(feature.name for feature in inputs.features if feature.is_weighted),
    )


def standardised(experiment: Experiment) -> tuple[str, ...]:
    """Names of the numeric features that enter the model as numbers, without an embedding."""
    return tuple(f.name for f in experiment.features if f.model_feature is None)
