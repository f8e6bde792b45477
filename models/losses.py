"""Losses: one a task, and their combination."""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.heads.towers import Predictions
from models.inputs import TargetTask


@dataclass
class Losses:
    """Losses of one batch."""

    total: Tensor  # scalar, what backward starts from
    tasks: Tensor  # (tasks,), unweighted


def task_losses(
    predictions: Predictions, labels: Tensor, weights: Tensor, weight_total: Tensor, tasks: tuple[TargetTask, ...]
) -> Tensor:
    """Mean loss of each task: cross-entropy of binary tasks, squared error of continuous ones.

    Args:
        predictions: of a batch.
        labels: ``(batch, tasks)`` on the training scale.
        weights: ``(batch,)``, 0 for padding.
        weight_total: scalar, the weight that the sum is divided by.
        tasks: in the order of the columns.

    Returns:
        ``(tasks,)``.
    """
    columns = []
    for k, task in enumerate(tasks):
        output, label = predictions.outputs[:, k], labels[:, k]
        if task.kind == "binary":
            loss = -(label * output + (1 - label) * predictions.complements[:, k])
        else:
            loss = (output - label).square()
        columns.append((loss * weights).sum() / weight_total)
    return torch.stack(columns)


def combine(losses: Tensor, auxiliary: dict[str, Tensor], tasks: tuple[TargetTask, ...]) -> Losses:
    """Sum of the task losses by their fixed weights, and of the trunk's auxiliary losses."""
    factors = torch.tensor([task.weight for task in tasks], device=losses.device)
    total = (losses * factors).sum()
    for extra in auxiliary.values():
        total = total + extra
    return Losses(total, losses.detach())
