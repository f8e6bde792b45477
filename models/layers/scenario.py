"""The scenario of a row as an input."""

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
        vectors = self(scenarios).expand(*representation.shape[:-1], self.dim)
        return torch.cat([representation, vectors.to(representation.dtype)], dim=-1)
