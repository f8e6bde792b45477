"""The weights of the task losses."""

import torch
from torch import Tensor, nn

from models.config import ObjectiveConfig
from models.inputs import Task
from models.labels import label


class Objective(nn.Module):
    """Weighted losses.

    With uncertainty ``L_t exp(-s_t) + s_t / 2`` for a binary task and ``L_t exp(-s_t) / 2 + s_t / 2`` for a continuous
    one, with s_t learned from 0 (Kendall, Gal, Cipolla, Multi-Task Learning Using Uncertainty, CVPR 2018), times the
    task's fixed weight. The paper derives this for cross-entropy and squared error; other losses are treated as squared
    error. The weight of a loss that can be negative could grow without limit, so such a loss is refused with it.
    """

    def __init__(self, tasks: tuple[Task, ...], config: ObjectiveConfig) -> None:
        super().__init__()
        self.fixed: Tensor
        self.scale: Tensor
        # Not saved: a resumed run uses the weights of its experiment.
        self.register_buffer("fixed", torch.tensor([task.weight for task in tasks]), persistent=False)
        scale = torch.tensor([1.0 if task.kind == "binary" else 0.5 for task in tasks])
        self.register_buffer("scale", scale, persistent=False)
        is_learned = config.weighting == "uncertainty"
        self.log_variances = nn.Parameter(torch.zeros(len(tasks))) if is_learned else None
        if is_learned:
            label(self, "log_variances", 0, [task.name for task in tasks])
        self.diagnostics = tuple(f"task_weight/{task.name}" for task in tasks) if is_learned else ()

    def forward(self, losses: Tensor, is_present: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Weights losses.

        Args:
            losses: ``(tasks,)``.
            is_present: ``(tasks,)`` bool, False for a task of which the global batch has no label, so that its learned
                weight does not change; None: all tasks have labels.

        Returns:
            Weighted losses ``(tasks,)``, and the current learned factors, detached.
        """
        if self.log_variances is None:
            return losses * self.fixed, losses.new_empty(0)
        factors = self.scale * (-self.log_variances).exp()
        weighted = losses * factors + self.log_variances / 2
        if is_present is not None:
            weighted = weighted * is_present
        return self.fixed * weighted, (self.fixed * factors).detach()
