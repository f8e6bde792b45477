"""What a model is built from: tables, features, scenarios and tasks, without files and column names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # processes that read the experiment file or preprocess logs do not need PyTorch
    from torch import Tensor

from models.loss_config import LossConfig

TaskKind = Literal["binary", "continuous"]
FeatureKind = Literal["categorical", "multivalued", "sequence"]


@dataclass(frozen=True)
class EmbeddingTable:
    """One embedding table of ``(rows, dim)``."""

    name: str
    rows: int
    dim: int


@dataclass(frozen=True)
class Feature:
    """One embedded feature and the table in which its ids are looked up."""

    name: str
    table: str
    kind: FeatureKind
    pooling: Literal["mean", "sum"] = "mean"  # only for kind multivalued
    is_weighted: bool = False  # whether each id has a weight; only for kind multivalued
    max_length: int = 1  # only for kind sequence


@dataclass(frozen=True)
class LabelSummary:
    """The labels of a task in the training data, on the training scale and by their weights. A model starts there."""

    mean: float
    deviation: float
    rate: float  # share of labels above zero; never 0 or 1
    rate_after: float  # the same among the rows in which the task that it comes after happened
    log_mean: float  # of the logarithms of the labels above zero; 0 if there are none
    log_deviation: float


@dataclass(frozen=True)
class Task:
    """A task as a model sees it; ``after`` is the index of the task that it depends on."""

    name: str
    kind: TaskKind
    after: int | None = None
    weight: float = 1.0
    loss: LossConfig = LossConfig()
    labels: LabelSummary | None = None  # None: unknown, so that the model starts at random


@dataclass(frozen=True)
class ModelInputs:
    """Everything outside the model that determines its shapes."""

    tables: tuple[EmbeddingTable, ...]
    features: tuple[Feature, ...]
    numerics: int
    scenarios: tuple[tuple[str, ...], ...]  # per level: labels of its scenarios, in the order of their indices
    tasks: tuple[Task, ...]
    levels: tuple[str, ...]  # names of the levels

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)

    def table(self, name: str) -> EmbeddingTable:
        return next(table for table in self.tables if table.name == name)

    def dim(self, feature: str) -> int:
        return self.table(next(f.table for f in self.features if f.name == feature)).dim

    @property
    def jagged_tables(self) -> frozenset[str]:
        """Tables that a sequence uses. Their rows are looked up one by one, not pooled."""
        return frozenset(f.table for f in self.features if f.kind == "sequence")

    @property
    def pooled_features(self) -> tuple[Feature, ...]:
        """Features of `Batch.ids`, in the order of its keys."""
        return tuple(f for f in self.features if f.table not in self.jagged_tables)

    @property
    def jagged_features(self) -> tuple[Feature, ...]:
        """Features of `Batch.sequences`, in the order of its keys."""
        return tuple(f for f in self.features if f.table in self.jagged_tables)


@dataclass
class Embedded:
    """Output of the shared embedding, input of a bottom."""

    features: dict[str, Tensor]  # name -> (batch, dim), in the order of ModelInputs.features
    sequences: dict[str, Tensor]  # name -> (batch, max_length, dim), zeros after the end
    lengths: dict[str, Tensor]  # name -> (batch,)
    numerics: Tensor  # (batch, numerics)

    def cut(self) -> Embedded:
        """The same values, detached: the start of a separate autograd graph."""
        return replace(
            self,
            features={name: value.detach().requires_grad_() for name, value in self.features.items()},
            sequences={name: value.detach().requires_grad_() for name, value in self.sequences.items()},
        )

    @property
    def looked_up(self) -> list[Tensor]:
        """The embeddings: all tensors that were looked up in tables."""
        return [*self.features.values(), *self.sequences.values()]
