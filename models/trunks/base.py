"""What every trunk takes and gives."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor, nn


def this_worker_alone(values: Tensor) -> Tensor:
    """The sum over all workers where there is one."""
    return values


GrowthAxis = Literal["task", "scenario"]


@dataclass
class Context:
    """What a trunk may know of its rows beside their representation."""

    scenarios: Tensor  # (batch, levels)
    weights: Tensor  # (batch,), 0 for padding
    weight_total: Tensor  # scalar: weight of the global batch divided by the number of workers
    noise_keys: Tensor  # (batch,) int64, what a row's random draws in this step are keyed by
    total: Callable[[Tensor], Tensor] = this_worker_alone  # sum over all workers, differentiable
    logit: Callable[[int, Tensor], Tensor] | None = None  # the head's (batch,) for a task number and (batch, h)


@dataclass
class TrunkOutput:
    """Hidden vectors a task, with what the trunk adds to the loss and what it tells about itself."""

    hidden: Tensor  # (tasks, batch, h)
    logits: Tensor | None = None  # (tasks, batch), added to what the head makes of `hidden`
    penalty: Tensor | None = None  # scalar, weighted, this worker's share: added to the loss
    diagnostics: dict[str, Tensor] = field(default_factory=dict)  # name -> scalar, detached, this worker's share
    experts: dict[str, Tensor] = field(default_factory=dict)
    """Layer -> (groups, batch, experts), detached: each expert's share in a row's output, 0 where not selected.
    Groups are the tasks, or one for all of them."""


class Trunk(nn.Module, ABC):
    """Representation and scenarios in, a hidden vector per task out.

    What a trunk says about its class is checked by the tests that hold for all trunks.
    """

    has_experts: ClassVar[bool] = False
    """Whether `TrunkOutput.experts` says who uses which expert."""
    keeps_predictions: ClassVar[frozenset[GrowthAxis]] = frozenset({"task", "scenario"})
    """What may be added to a trained model while its predictions for old tasks in old scenarios stay as they are.

    A task is missing where the other tasks read it, a scenario where rows of other scenarios do. Say why.
    """
    out_dim: int  # h
    diagnostics: tuple[str, ...] = ()  # names of TrunkOutput.diagnostics

    @abstractmethod
    def forward(self, representation: Tensor, context: Context) -> TrunkOutput:
        """Takes a representation ``(batch, in_dim)`` that all tasks share, or one a task ``(tasks, batch, in_dim)``."""
