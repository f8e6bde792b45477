"""The loss of each task."""

import torch
from torch import Tensor

from models.binary import binary_loss
from models.continuous import CONTINUOUS
from models.heads.towers import HeadOutput
from models.inputs import Task
from models.task_weights import TaskWeights


def task_losses(predictions: HeadOutput, labels: Tensor, weights: Tensor, weight_total: Tensor) -> Tensor:
    """Mean loss of each task: cross-entropy of a binary task, the configured loss of a continuous task.

    Args:
        predictions: predictions of a batch.
        labels: ``(batch, tasks)`` on the training scale.
        weights: ``(batch,)``, 0 for padding.
        weight_total: scalar; the weighted sum is divided by it.

    Returns:
        ``(tasks,)``.
    """
    tasks = zip(predictions.tasks, predictions.parameters, labels.T, strict=True)
    return torch.stack([(_row_losses(*task) * weights).sum() / weight_total for task in tasks])


def weighted_task_losses(predictions: HeadOutput, labels: Tensor, weights: TaskWeights) -> Tensor:
    """Weighted mean loss of each task, ``(tasks,)``, over the rows that count for it; 0 if there is none.

    Rows that do not count are replaced before the loss is computed, because 0 times NaN or infinity is NaN, also in
    gradients. Labels ``(batch, tasks)`` may be NaN in these rows.
    """
    counts = weights.values > 0
    columns = []
    for k, (task, parameters) in enumerate(zip(predictions.tasks, predictions.parameters, strict=True)):
        kept = torch.where(counts[:, k : k + 1], parameters, 0.0)
        columns.append(_row_losses(task, kept, torch.where(counts[:, k], labels[:, k], 0.0)))
    return weights.mean(torch.stack(columns, dim=1))


def _row_losses(task: Task, parameters: Tensor, labels: Tensor) -> Tensor:
    if task.kind == "binary":
        return binary_loss(parameters[:, 0], parameters[:, 1], labels, task.loss)
    return CONTINUOUS[task.loss.loss].loss(parameters, labels, task.loss)
