"""Inputs that the model tests share."""

from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from models.build import DenseModel, ModelConfig, TrunkConfig, build_dense, build_trunk
from models.inputs import Embedded, EmbeddingTable, Feature, ModelInputs, Task
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
SMALL: dict[str, dict[str, Any]] = {
    "shared_bottom": {"hidden": [8]},
    "parallel_dnn": {"hidden": [8, 6]},
    "cross_stitch": {"hidden": [8, 6]},
    "mmoe": {"experts": 3, "hidden": [8, 6]},
    "hmoe": {"experts": 3, "hidden": [8], "tower": [6]},
    "ple": {"specific": 2, "shared": 1, "hidden": [8]},
    "star": {"hidden": [8], "task_hidden": [6], "auxiliary": 4},
    "aesm": {"experts": 4, "hidden": [8], "scenario_layers": 2, "task_layers": 2},
    "htlnet": {"hidden": [8, 6], "label_dim": 3, "fusion_dim": 4},
}
"""Small settings of every trunk."""

BOTTOMS: dict[str, dict[str, Any]] = {
    "concat": {},
    "din": {"target": "item", "hidden": [8]},
    "dtrn": {"target": "item", "condition_dim": 4, "refine_dim": 5},
}


def trunk(kind: str, in_dim: int, inputs: ModelInputs = INPUTS, **settings: Any) -> Trunk:
    config = TypeAdapter(TrunkConfig).validate_python({"kind": kind, **SMALL[kind], **settings})
    return build_trunk(config, inputs, in_dim)


def names(name: str, count: int) -> tuple[str, ...]:
    """So many scenarios of a level, or tasks."""
    return tuple(f"{name}={number}" for number in range(count))


def dense(bottom: str, kind: str, inputs: ModelInputs = INPUTS, **settings: Any) -> DenseModel:
    """A whole dense model."""
    sections = {"bottom": {"kind": bottom, **BOTTOMS[bottom]}, "trunk": {"kind": kind, **SMALL[kind], **settings}}
    return build_dense(ModelConfig.model_validate(sections), inputs)


def context(scenarios: list[list[int]] | Tensor, weights: list[float] | None = None) -> Context:
    """Rows of these scenarios, of weight 1 unless told, for a trunk that reads no predictions but zero."""
    indices = torch.as_tensor(scenarios)
    row_weights = torch.ones(len(indices)) if weights is None else torch.tensor(weights)
    return Context(
        indices,
        row_weights,
        row_weights.sum(),
        torch.arange(len(indices)),
        logit=lambda task, hidden: hidden.sum(1) * 0,
    )


SCENARIOS = [[0, 1], [2, 0], [1, 1], [0, 0], [2, 1]]


def embedded(batch: int = 5, dim: int = 4) -> Embedded:
    """Random rows with lengths 3, 0, 1, 2, 3, and rubbish where there is padding."""
    return Embedded(
        features={
            "user": torch.randn(batch, dim),
            "item": torch.randn(batch, dim),
            "tags": torch.randn(batch, 2),
        },
        sequences={"watched": torch.randn(batch, 3, dim)},
        lengths={"watched": torch.tensor([3, 0, 1, 2, 3])},
        numerics=torch.randn(batch, 1),
    )
