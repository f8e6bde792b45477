"""The loss of each task."""

import torch
from torch import Tensor

from models.continuous import CONTINUOUS
from models.heads.towers import HeadOutput


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
    columns = []
    for task, parameters, label in zip(predictions.tasks, predictions.parameters, labels.T, strict=True):
        if task.kind == "binary":
            loss = -(label * parameters[:, 0] + (1 - label) * parameters[:, 1])
        else:
            loss = CONTINUOUS[task.loss.loss].loss(parameters, label, task.loss)
        columns.append((loss * weights).sum() / weight_total)
    return torch.stack(columns)
