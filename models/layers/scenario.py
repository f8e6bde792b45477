"""The scenario of a row as an input, and as a number."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.labels import combined, label


class ScenarioEmbedding(nn.Module):
    """One small embedding a level of the scenario tree, concatenated.

    Part of the dense model, not of the sharded tables: a level has a handful of values and every row has one.
    """

    def __init__(self, levels: Sequence[Sequence[str]], dim: int) -> None:
        super().__init__()
        self.levels = level_embeddings(levels, dim)
        self.dim = dim * len(levels)

    def forward(self, scenarios: Tensor) -> Tensor:
        """Indices ``(batch, levels)`` to ``(batch, levels * dim)``."""
        return torch.cat([level(scenarios[:, i]) for i, level in enumerate(self.levels)], dim=1)

    def beside(self, representation: Tensor, scenarios: Tensor) -> Tensor:
        """A representation ``(..., batch, d)`` with the scenario beside it, ``(..., batch, d + dim)``."""
        return beside(representation, self(scenarios))


class FinestScenario:
    """Every combination of the levels' scenarios as one number: the leaves of the scenario tree."""

    def __init__(self, levels: Sequence[Sequence[str]]) -> None:
        self._sizes = [len(level) for level in levels]
        self.labels = combined(*levels, separator="/")
        self.count = len(self.labels)

    def __call__(self, scenarios: Tensor) -> Tensor:
        """Indices ``(batch, levels)`` to numbers below `count`, ``(batch,)``; the last level varies fastest."""
        number = torch.zeros_like(scenarios[:, 0])
        for level, size in enumerate(self._sizes):
            number = number * size + scenarios[:, level]
        return number


def level_embeddings(levels: Sequence[Sequence[str]], dim: int) -> nn.ModuleList:
    """An embedding a level, with a row a scenario."""
    embeddings = nn.ModuleList()
    for scenarios in levels:
        embeddings.append(nn.Embedding(len(scenarios), dim))
        label(embeddings[-1], "weight", 0, scenarios)
    return embeddings


def beside(representation: Tensor, vectors: Tensor) -> Tensor:
    """``(..., batch, d)`` and ``(batch, e)`` to ``(..., batch, d + e)``."""
    expanded = vectors.expand(*representation.shape[:-1], vectors.shape[-1])
    return torch.cat([representation, expanded.to(representation.dtype)], dim=-1)
