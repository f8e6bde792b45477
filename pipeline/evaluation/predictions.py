"""Passes a split through the model: predictions of this worker, batch by batch."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.config.conditional_tasks import ConditionalTask
from pipeline.evaluation.split_metrics import Predictions
from pipeline.loading.batch import Batch
from pipeline.loading.position import Position
from pipeline.loading.prefetch import prefetch
from pipeline.loading.reader import Reader
from pipeline.sharding.module import StepOutput


@dataclass
class PredictedBatch:
    """One worker's part of a batch."""

    predictions: Predictions  # padding left out
    keys: pa.Table | None  # padding left out
    output: StepOutput  # with padding, on the module's device


def predict(
    module: nn.Module,
    reader: Reader,
    device: torch.device,
    conditional: Sequence[ConditionalTask],
    group: str | None = None,
) -> Iterator[PredictedBatch]:
    """Predicts a whole split in the order of the table.

    Every worker makes the same number of steps, as sharded tables need. The module is left in evaluation mode.

    Args:
        module: batch to (loss, StepOutput).
        reader: of the split, with the group among its keys.
        device: of the module.
        conditional: the conditional tasks. Their columns follow those of the tasks.
        group: key column whose values become `Predictions.groups`.
    """
    module.eval()
    batches = prefetch(reader.epoch(Position()))
    with closing(batches), torch.no_grad():
        for batch in batches:
            _, output = module(batch.to(device))
            yield _without_padding(batch, output, conditional, group)


def _without_padding(
    batch: Batch, output: StepOutput, conditional: Sequence[ConditionalTask], group: str | None
) -> PredictedBatch:
    real = np.flatnonzero(output.weights.cpu().numpy() > 0)
    weights = output.task_weights
    deviations = output.deviations
    keys = batch.keys.take(pa.array(real)) if batch.keys is not None else None
    predictions = Predictions(
        labels=output.labels.cpu().numpy()[real],
        predictions=output.scores.float().cpu().numpy()[real],
        weights=output.weights.cpu().numpy()[real],
        scenarios=output.scenarios.cpu().numpy()[real].astype(np.int32),
        groups=group_ids(keys[group]) if group is not None and keys is not None else None,
        task_weights=None if weights is None else weights.values.cpu().numpy()[real],
        deviations=None if deviations is None else deviations.float().cpu().numpy()[real],
        references=None if batch.references is None else batch.references[real],
    )
    if output.conditionals is not None:
        given = output.conditionals.float().cpu().numpy()[real]
        predictions = add_conditional_tasks(predictions, given, conditional)
    return PredictedBatch(predictions, keys, output)


def add_conditional_tasks(
    rows: Predictions, given: NDArray[np.float32], conditional: Sequence[ConditionalTask]
) -> Predictions:
    """Adds a column per conditional task to labels, predictions and weights.

    Its label is that of its task where the label of the task before it is above 0, and NaN in all other rows.

    Args:
        rows: with a column per task.
        given: P(task | after), ``(rows, conditional tasks)``.
        conditional: the conditional tasks.
    """
    columns, before = [part.task for part in conditional], [part.after for part in conditional]
    labels = np.where(rows.labels[:, before] > 0, rows.labels[:, columns], np.float32(np.nan))
    weights = rows.task_weights
    return replace(
        rows,
        labels=np.hstack([rows.labels, labels]),
        predictions=np.hstack([rows.predictions, given]),
        task_weights=None if weights is None else np.hstack([weights, weights[:, columns]]),
    )


def group_ids(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """One number per value, the same on every worker: integers unchanged, other values as 64-bit hashes."""
    if pa.types.is_integer(column.type):
        return column.to_numpy().astype(np.int64)
    return pd.util.hash_array(column.cast(pa.string()).to_pandas().to_numpy()).view(np.int64)
