"""The interface of all trunks."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor, nn

from models.task_weights import TaskWeights


def this_worker_alone(values: Tensor) -> Tensor:
    """The sum over all workers if there is only one worker."""
    return values


GrowthAxis = Literal["task", "scenario"]


@dataclass
class Context:
    """Inputs of a trunk in addition to the representation of its rows."""

    scenarios: Tensor  # (batch, levels)
    weights: Tensor  # (batch,), 0 for padding
    weight_total: Tensor  # scalar: weight of the global batch / number of workers
    noise_keys: Tensor  # (batch,) int64, keys of the rows' random draws in this step
    total: Callable[[Tensor], Tensor] = this_worker_alone  # sum over all workers, differentiable
    predict: Callable[[int, Tensor, Tensor | None], Tensor] | None = None  # the head, see TowersHead.predict
    task_weights: TaskWeights | None = None  # None: every row counts `weights` for every task


@dataclass
class TrunkOutput:
    """Hidden vectors per task, additions to the logits and to the loss, and diagnostics."""

    hidden: Tensor  # (tasks, batch, h)
    logits: Tensor | None = None  # (tasks, batch), added to the first units of the head
    predictions: dict[int, Tensor] = field(default_factory=dict)  # task -> what `Context.predict` returned for it
    penalty: Tensor | None = None  # scalar, weighted, this worker's share; added to the loss
    diagnostics: dict[str, Tensor] = field(default_factory=dict)  # name -> scalar, detached, this worker's share
    experts: dict[str, Tensor] = field(default_factory=dict)
    """Layer -> (groups, batch, experts), detached: each expert's share in a row's output, 0 where not selected.
    The groups are the tasks, or a single group for all tasks."""


class Trunk(nn.Module, ABC):
    """Computes one hidden vector per task from the representation and the scenarios of a row.

    The tests for all trunks check the statements of each class, such as `keeps_predictions`.
    """

    has_experts: ClassVar[bool] = False
    """Whether `TrunkOutput.experts` shows which rows use which experts."""
    keeps_predictions: ClassVar[frozenset[GrowthAxis]] = frozenset({"task", "scenario"})
    """Additions to a trained model that leave its predictions for old tasks in old scenarios unchanged.

    A trunk leaves out "task" if tasks read other tasks, and "scenario" if rows use parts of other scenarios; a comment
    says why.
    """
    restarted: ClassVar[frozenset[str]] = frozenset()
    """Buffers that start again when a trained model grows, because its new parts start to learn then."""
    out_dim: int  # h
    diagnostics: tuple[str, ...] = ()  # names of TrunkOutput.diagnostics

    @abstractmethod
    def forward(self, representation: Tensor, context: Context) -> TrunkOutput:
        """Takes one representation for all tasks, ``(batch, in_dim)``, or one per task, ``(tasks, batch, in_dim)``."""
