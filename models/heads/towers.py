"""Head `towers`: one tower per task; probabilities are composed along the causal order of the tasks."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from models.config import TowersConfig
from models.continuous import CONTINUOUS, log_odds
from models.inputs import LabelSummary, ModelInputs, Task
from models.layers.mlp import Units, mlp
from models.trunks.base import TrunkOutput


@dataclass
class HeadOutput:
    """Predictions of one batch, in the form from which each task's loss is computed.

    For a binary task these are the logarithms of its probability and of the complement, so that the loss stays exact
    where a product of probabilities would round to 0 or 1. A binary task that comes after another has a third column,
    the logarithm of its probability given that the other has happened. For a continuous task they are the units of its
    loss.
    """

    tasks: tuple[Task, ...]
    parameters: tuple[Tensor, ...]  # per task: (batch, 2 or 3), log P, log (1 - P), log P(t | after); or (batch, units)

    def scores(self) -> Tensor:
        """Probability of each binary task and value of each continuous task: ``(batch, tasks)``."""
        columns = [
            parameters[:, 0].exp() if task.kind == "binary" else CONTINUOUS[task.loss.loss].value(parameters)
            for task, parameters in zip(self.tasks, self.parameters, strict=True)
        ]
        return torch.stack(columns, dim=1)

    def conditionals(self) -> Tensor | None:
        """P(task | after) of each binary task that comes after another, ``(batch, such tasks)``; None without any."""
        columns = [
            parameters[:, 2].exp()
            for task, parameters in zip(self.tasks, self.parameters, strict=True)
            if task.kind == "binary" and task.after is not None
        ]
        return torch.stack(columns, dim=1) if columns else None

    def deviations(self) -> Tensor | None:
        """Standard deviation of each task whose loss predicts one, ``(batch, tasks)``, 0 for other tasks; None if no
        task has one."""
        functions = [CONTINUOUS[task.loss.loss].deviation if task.kind == "continuous" else None for task in self.tasks]
        if not any(functions):
            return None
        columns = [
            deviation(parameters) if deviation is not None else torch.zeros_like(parameters[:, 0])
            for deviation, parameters in zip(functions, self.parameters, strict=True)
        ]
        return torch.stack(columns, dim=1)


class TowersHead(nn.Module):
    """One MLP and one linear layer per task, applied to that task's hidden vector.

    With `product`, for binary task t after binary task a (Ma et al., Entire Space Multi-Task Model, SIGIR 2018,
    pCTCVR = pCTR * pCVR):

        log P(t)       = log P(a) + log sigmoid(z_t)
        log (1 - P(t)) = log( (1 - P(a)) + P(a) * (1 - sigmoid(z_t)) )

    so that P(t | a) is sigmoid(z_t). Without `product` P(t) is sigmoid(z_t), and P(t | a) the ratio P(t) / P(a), or 1
    where that is larger: nothing keeps P(t) below P(a). A continuous task is a regression over all rows, even if it
    comes after another task. The biases of the output units start where they predict the labels' mean, if `Task.labels`
    are known, so that no step goes into learning it.
    """

    def __init__(self, inputs: ModelInputs, config: TowersConfig, in_dim: int) -> None:
        super().__init__()
        self._tasks = inputs.tasks
        self._product = config.conversion == "product"
        out_dim = config.hidden[-1] if config.hidden else in_dim
        self.towers = nn.ModuleDict()
        for task in inputs.tasks:
            hidden = mlp(in_dim, config.hidden, config.dropout)
            units = Units(out_dim, 1 if task.kind == "binary" else CONTINUOUS[task.loss.loss].units)
            if task.labels is not None:
                with torch.no_grad():
                    units.bias.copy_(torch.tensor(self._start(task, task.labels)))
            self.towers[task.name] = nn.Sequential(hidden, units)

    def _start(self, task: Task, labels: LabelSummary) -> tuple[float, ...]:
        """Biases of the output units that predict the mean of these labels."""
        if task.kind == "continuous":
            return CONTINUOUS[task.loss.loss].start(labels)
        is_conditional = task.after is not None and self._product
        return (log_odds(labels.rate_after if is_conditional else labels.rate),)

    def predict(self, task: int, hidden: Tensor, before: Tensor | None, addition: Tensor | None = None) -> Tensor:
        """Predicts one task, in the form of `HeadOutput.parameters`.

        Args:
            task: its index.
            hidden: its hidden vectors, ``(batch, in_dim)``.
            before: the prediction of the task that it comes after; None if it does not come after another.
            addition: ``(batch,)``, added to its first unit; None: nothing.
        """
        units = self.towers[self._tasks[task].name](hidden)
        if addition is not None:
            units = torch.cat([units[:, :1] + addition.unsqueeze(1), units[:, 1:]], dim=1)
        if self._tasks[task].kind == "continuous":
            return units
        yes, no = logsigmoid(units[:, 0]), logsigmoid(-units[:, 0])
        if before is None:
            return torch.stack([yes, no], dim=1)
        before_yes, before_no = before[:, 0], before[:, 1]
        given = yes if self._product else (yes - before_yes).clamp(max=0)
        if self._product:
            yes, no = before_yes + yes, torch.logaddexp(before_no, before_yes + no)
        return torch.stack([yes, no, given], dim=1)

    def forward(self, output: TrunkOutput) -> HeadOutput:
        """Predicts from a trunk's hidden vectors ``(tasks, batch, in_dim)`` and its additions to the first units.

        A task that the trunk has already predicted with `predict` keeps that prediction.
        """
        parameters: list[Tensor] = []
        for k, task in enumerate(self._tasks):
            if k in output.predictions:
                parameters.append(output.predictions[k])
                continue
            before = None if task.after is None else parameters[task.after]
            addition = None if output.logits is None else output.logits[k]
            parameters.append(self.predict(k, output.hidden[k], before, addition))
        return HeadOutput(self._tasks, tuple(parameters))
