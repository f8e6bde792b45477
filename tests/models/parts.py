"""Inputs that the model tests share."""

import math
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from models.build import DenseModel, build_dense, build_trunk
from models.config import BottomConfig, ModelConfig, TrunkConfig
from models.inputs import Embedded, EmbeddingTable, Feature, ModelInputs, Task
from models.section import Widths, sections_by_kind
from models.trunks.base import Context, Trunk

TASKS = (
    Task("click", "binary"),
    Task("buy", "binary", after=0),
    Task("value", "continuous", after=1),
)
INPUTS = ModelInputs(
    tables=(EmbeddingTable("user", 10, 4), EmbeddingTable("item", 7, 4), EmbeddingTable("tags", 5, 2)),
    features=(
        Feature("user", "user", "categorical"),
        Feature("item", "item", "categorical"),
        Feature("tags", "tags", "multivalued"),
        Feature("watched", "item", "sequence", max_length=3),
    ),
    numerics=1,
    scenarios=(("tab=1", "tab=0", "tab=other"), ("user=new", "user=old")),
    tasks=TASKS,
    levels=("tab", "user"),
)
MORE: dict[str, dict[str, Any]] = {"aesm": {"scenario_layers": 2, "task_layers": 2}}
"""Settings that the defaults of a kind do not cover but its tests should."""


def small_sections(union: Any) -> dict[str, dict[str, Any]]:
    """Small settings for every kind in a union of sections: the defaults with narrow layers, and a target if needed."""
    sections = {}
    for kind, config in sections_by_kind(union).items():
        fields = config.model_fields
        widths = {name: [8, 6][: len(field.default)] for name, field in fields.items() if field.annotation == Widths}
        target = {"target": "item"} if "target" in fields else {}
        sections[kind] = {**widths, **target, **MORE.get(kind, {})}
    return sections


SMALL = small_sections(TrunkConfig)
BOTTOMS = small_sections(BottomConfig)


def trunk(kind: str, in_dim: int, inputs: ModelInputs = INPUTS, **settings: Any) -> Trunk:
    config = TypeAdapter(TrunkConfig).validate_python({"kind": kind, **SMALL[kind], **settings})
    return build_trunk(config, inputs, in_dim)


def names(name: str, count: int) -> tuple[str, ...]:
    """Names for `count` scenarios of a level, or for `count` tasks."""
    return tuple(f"{name}={number}" for number in range(count))


def dense(bottom: str, kind: str, inputs: ModelInputs = INPUTS, **settings: Any) -> DenseModel:
    """A complete dense model."""
    sections = {"bottom": {"kind": bottom, **BOTTOMS[bottom]}, "trunk": {"kind": kind, **SMALL[kind], **settings}}
    return build_dense(ModelConfig.model_validate(sections), inputs)


def context(scenarios: list[list[int]] | Tensor, weights: list[float] | None = None) -> Context:
    """Context of rows in these scenarios, with weight 1 by default; the head predicts probabilities of one half."""
    indices = torch.as_tensor(scenarios)
    row_weights = torch.ones(len(indices)) if weights is None else torch.tensor(weights)
    return Context(
        indices,
        row_weights,
        row_weights.sum(),
        torch.arange(len(indices)),
        predict=lambda task, hidden, before: torch.full((len(hidden), 2), math.log(0.5)),
    )


SCENARIOS = [[0, 1], [2, 0], [1, 1], [0, 0], [2, 1]]


def embedded(batch: int = 5, dim: int = 4) -> Embedded:
    """Random rows whose lengths repeat 3, 0, 1, 2, 3; the padding contains random values too."""
    return Embedded(
        features={
            "user": torch.randn(batch, dim),
            "item": torch.randn(batch, dim),
            "tags": torch.randn(batch, 2),
        },
        sequences={"watched": torch.randn(batch, 3, dim)},
        lengths={"watched": torch.tensor([3, 0, 1, 2, 3]).repeat(-(-batch // 5))[:batch]},
        numerics=torch.randn(batch, 1),
    )
