"""The metric by which validations are compared, for early stopping and the best checkpoint."""

from typing import Any

from pipeline.config.experiment import Experiment
from pipeline.evaluation.split_metrics import metric_value
from pipeline.metrics.registry import METRICS, is_better
from pipeline.training.trainer import Criterion


def criterion_of(experiment: Experiment) -> Criterion | None:
    """The criterion of an experiment; None if it names no metric for it."""
    stopping = experiment.training.early_stopping
    if stopping is None:
        return None
    metric = stopping.metric
    return Criterion(
        value=lambda evaluation: metric_value(evaluation, metric),
        is_better=lambda new, best: is_better(metric, new, best),
        describe_undefined=lambda evaluation: describe_undefined(evaluation, metric),
    )


def describe_undefined(evaluation: dict[str, Any], metric: str) -> str:
    """Why a validation does not count, with the metrics that are defined in it."""
    task = evaluation["tasks"][metric.rpartition(".")[0]]
    found = f"{task['rows']:,} rows" + (f", {task['positives']:,} of them positive" if "positives" in task else "")
    defined = [
        f"{name}.{known}"
        for name, cell in evaluation["tasks"].items()
        for known, value in cell.items()
        if known in METRICS and METRICS[known].ranks and value is not None
    ]
    others = f"use one that is defined there ({', '.join(defined)}), or " if defined else ""
    return (
        f"training.early_stopping.metric: {metric} is undefined on the valid split ({found}). While it is, training "
        f"does not stop early, and no checkpoint is the best: {others}choose another valid split in logs.splits."
    )
