"""Head `towers`: a tower a task, probabilities composed along the causal order."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from models.config import TowersConfig
from models.continuous import CONTINUOUS
from models.inputs import ModelInputs, Task
from models.layers.mlp import Units, mlp
from models.trunks.base import TrunkOutput


@dataclass
class HeadOutput:
    """Predictions of one batch: what each task's loss is computed from.

    A binary task is held as the logarithms of its probability and of its complement, which keeps the loss exact
    where a product of probabilities would round to 0 or 1. A continuous task is held as the units of its loss.
    """

    tasks: tuple[Task, ...]
    parameters: tuple[Tensor, ...]  # a task: (batch, 2) with log P and log (1 - P), or (batch, units)

    def scores(self) -> Tensor:
        """Probability of each binary task, value of each continuous one: ``(batch, tasks)``."""
        columns = [
            parameters[:, 0].exp() if task.kind == "binary" else CONTINUOUS[task.loss.loss].value(parameters)
            for task, parameters in zip(self.tasks, self.parameters, strict=True)
        ]
        return torch.stack(columns, dim=1)


class TowersHead(nn.Module):
    """One MLP and one linear layer a task, on that task's hidden vector.

    With `product`, for binary task t after binary task a (Ma et al., Entire Space Multi-Task Model, SIGIR 2018,
    pCTCVR = pCTR * pCVR):

        log P(t)       = log P(a) + log sigmoid(z_t)
        log (1 - P(t)) = log( (1 - P(a)) + P(a) * (1 - sigmoid(z_t)) )

    A continuous task is regressed over all rows whatever it comes after.
    """

    def __init__(self, inputs: ModelInputs, config: TowersConfig, in_dim: int) -> None:
        super().__init__()
        self._tasks = inputs.tasks
        self._product = config.conversion == "product"
        out_dim = config.hidden[-1] if config.hidden else in_dim
        units = {task.name: 1 if task.kind == "binary" else CONTINUOUS[task.loss.loss].units for task in inputs.tasks}
        self.towers = nn.ModuleDict(
            {
                name: nn.Sequential(mlp(in_dim, config.hidden, config.dropout), Units(out_dim, count))
                for name, count in units.items()
            }
        )

    def logit(self, task: int, hidden: Tensor) -> Tensor:
        """First unit of a task from its hidden vector ``(batch, in_dim)``: ``(batch,)``."""
        return self.towers[self._tasks[task].name](hidden)[:, 0]

    def forward(self, output: TrunkOutput) -> HeadOutput:
        """Predictions from a trunk's hidden vectors ``(tasks, batch, in_dim)`` and what it adds to the first units."""
        parameters: list[Tensor] = []
        for k, task in enumerate(self._tasks):
            units = self.towers[task.name](output.hidden[k]).float()
            if output.logits is not None:
                units = torch.cat([units[:, :1] + output.logits[k].unsqueeze(1), units[:, 1:]], dim=1)
            if task.kind == "continuous":
                parameters.append(units)
                continue
            yes, no = logsigmoid(units[:, 0]), logsigmoid(-units[:, 0])
            if task.after is not None and self._product:
                before, not_before = parameters[task.after].unbind(1)
                yes, no = before + yes, torch.logaddexp(not_before, before + no)
            parameters.append(torch.stack([yes, no], dim=1))
        return HeadOutput(self._tasks, tuple(parameters))
