"""Head `towers`: a tower a task, probabilities composed along the causal order."""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from models.inputs import ModelInputs
from models.layers.mlp import mlp
from models.section import ModelSection, Widths


class TowersConfig(ModelSection):
    """`product` trains P(task) = P(after) * P(task | after) over all rows, as ESMM; `direct` trains P(task) itself."""

    kind: Literal["towers"]
    hidden: Widths = [64]
    dropout: float = Field(default=0.0, ge=0, lt=1)
    conversion: Literal["product", "direct"] = "product"


@dataclass
class Predictions:
    """Predictions of one batch.

    A binary task is held as the logarithms of its probability and of its complement, which keeps the loss exact
    where a product of probabilities would round to 0 or 1. The columns of a continuous task are its value and zero.
    """

    outputs: Tensor  # (batch, tasks): log P(task), or the value
    complements: Tensor  # (batch, tasks): log (1 - P(task)), or 0

    def scores(self, binary: list[bool]) -> Tensor:
        """Probability of each binary task, value of each continuous one: ``(batch, tasks)``."""
        columns = [
            column.exp() if is_binary else column for column, is_binary in zip(self.outputs.T, binary, strict=True)
        ]
        return torch.stack(columns, dim=1)


class TowersHead(nn.Module):
    """One MLP and one linear unit a task, on that task's hidden vector.

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
        self.towers = nn.ModuleList(
            nn.Sequential(mlp(in_dim, config.hidden, config.dropout), nn.Linear(out_dim, 1)) for _ in inputs.tasks
        )

    def forward(self, hidden: Tensor) -> Predictions:
        """Hidden ``(tasks, batch, in_dim)`` to predictions ``(batch, tasks)``."""
        outputs: list[Tensor] = []
        complements: list[Tensor] = []
        for k, (task, tower) in enumerate(zip(self._tasks, self.towers, strict=True)):
            z = tower(hidden[k]).squeeze(1).float()
            if task.kind == "continuous":
                outputs.append(z)
                complements.append(torch.zeros_like(z))
            elif task.after is None or not self._product:
                outputs.append(logsigmoid(z))
                complements.append(logsigmoid(-z))
            else:
                before = outputs[task.after]
                outputs.append(before + logsigmoid(z))
                complements.append(torch.logaddexp(complements[task.after], before + logsigmoid(-z)))
        return Predictions(torch.stack(outputs, dim=1), torch.stack(complements, dim=1))
