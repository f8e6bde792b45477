"""The scenario of a row as an input, and as a number."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ScenarioEmbedding(nn.Module):
    """One small embedding a level of the scenario tree, concatenated.

    Part of the dense model, not of the sharded tables: a level has a handful of values and every row has one.
    """

    def __init__(self, sizes: Sequence[int], dim: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Embedding(size, dim) for size in sizes)
        self.dim = dim * len(sizes)

    def forward(self, scenarios: Tensor) -> Tensor:
        """Indices ``(batch, levels)`` to ``(batch, levels * dim)``."""
        return torch.cat([level(scenarios[:, i]) for i, level in enumerate(self.levels)], dim=1)

    def beside(self, representation: Tensor, scenarios: Tensor) -> Tensor:
        """A representation ``(..., batch, d)`` with the scenario beside it, ``(..., batch, d + dim)``."""
        return beside(representation, self(scenarios))


class FinestScenario:
    """Every combination of the levels' scenarios as one number: the leaves of the scenario tree."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes
        self.count = math.prod(sizes)

    def __call__(self, scenarios: Tensor) -> Tensor:
        """Indices ``(batch, levels)`` to numbers below `count`, ``(batch,)``; the last level varies fastest."""
        number = torch.zeros_like(scenarios[:, 0])
        for level, size in enumerate(self._sizes):
            number = number * size + scenarios[:, level]
        return number


def beside(representation: Tensor, vectors: Tensor) -> Tensor:
    """``(..., batch, d)`` and ``(batch, e)`` to ``(..., batch, d + e)``."""
    expanded = vectors.expand(*representation.shape[:-1], vectors.shape[-1])
    return torch.cat([representation, expanded.to(representation.dtype)], dim=-1)
