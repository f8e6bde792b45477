"""What a model is built for: tables, features, scenarios and tasks, free of files and of column names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # the experiment file is read, and logs are preprocessed, by processes that never need PyTorch
    from torch import Tensor

from models.loss_config import LossConfig

FeatureKind = Literal["categorical", "multivalued", "sequence"]


@dataclass(frozen=True)
class EmbeddingTable:
    """One embedding table of ``(rows, dim)``."""

    name: str
    rows: int
    dim: int


@dataclass(frozen=True)
class Feature:
    """One embedded feature and the table that its ids point into."""

    name: str
    table: str
    kind: FeatureKind
    pooling: Literal["mean", "sum"] = "mean"  # of kind multivalued
    max_length: int = 1  # of kind sequence


@dataclass(frozen=True)
class Task:
    """A task as a model sees it; ``after`` is the index of the task that it depends on."""

    name: str
    kind: Literal["binary", "continuous"]
    after: int | None = None
    weight: float = 1.0
    loss: LossConfig = LossConfig()  # of a continuous task


@dataclass(frozen=True)
class ModelInputs:
    """Everything outside the model that decides its shapes."""

    tables: tuple[EmbeddingTable, ...]
    features: tuple[Feature, ...]
    numerics: int
    scenarios: tuple[tuple[str, ...], ...]  # labels of the scenarios a level, in the order of their indices
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
        """Tables that a sequence reads, which cannot be looked up pooled."""
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
    """What the shared embedding gives to a bottom."""

    features: dict[str, Tensor]  # name -> (batch, dim), in the order of ModelInputs.features
    sequences: dict[str, Tensor]  # name -> (batch, max_length, dim), zeros after the end
    lengths: dict[str, Tensor]  # name -> (batch,)
    numerics: Tensor  # (batch, numerics)

    def cut(self) -> Embedded:
        """The same values, as the start of a graph of their own."""
        return replace(
            self,
            features={name: value.detach().requires_grad_() for name, value in self.features.items()},
            sequences={name: value.detach().requires_grad_() for name, value in self.sequences.items()},
        )

    @property
    def looked_up(self) -> list[Tensor]:
        """What came out of the tables."""
        return [*self.features.values(), *self.sequences.values()]
