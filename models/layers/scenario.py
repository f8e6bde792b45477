"""The scenario of a row as an embedding and as an index."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.labels import combined, label


class ScenarioEmbedding(nn.Module):
    """One small embedding per level of the scenario tree; they are concatenated.

    They are part of the dense model, not of the sharded tables: a level has few values, and each row has one of them.
    """

    def __init__(self, levels: Sequence[Sequence[str]], dim: int) -> None:
        super().__init__()
        self.levels = level_embeddings(levels, dim)
        self.dim = dim * len(levels)

    def forward(self, scenarios: Tensor) -> Tensor:
        """Maps indices ``(batch, levels)`` to ``(batch, levels * dim)``."""
        return torch.cat([level(scenarios[:, i]) for i, level in enumerate(self.levels)], dim=1)

    def append_to(self, representation: Tensor, scenarios: Tensor) -> Tensor:
        """Appends the scenario to a representation ``(..., batch, d)``: ``(..., batch, d + dim)``."""
        return append(representation, self(scenarios))


class FinestScenario:
    """Numbers the combinations of scenarios, one per level: the leaves of the scenario tree."""

    def __init__(self, levels: Sequence[Sequence[str]]) -> None:
        self._sizes = [len(level) for level in levels]
        self.labels = combined(*levels, separator="/")
        self.count = len(self.labels)

    def __call__(self, scenarios: Tensor) -> Tensor:
        """Maps indices ``(batch, levels)`` to numbers below `count`, ``(batch,)``; the last level varies fastest."""
        number = torch.zeros_like(scenarios[:, 0])
        for level, size in enumerate(self._sizes):
            number = number * size + scenarios[:, level]
        return number


def level_embeddings(levels: Sequence[Sequence[str]], dim: int) -> nn.ModuleList:
    """One embedding per level, with one row per scenario."""
    embeddings = nn.ModuleList()
    for scenarios in levels:
        embeddings.append(nn.Embedding(len(scenarios), dim))
        label(embeddings[-1], "weight", 0, scenarios)
    return embeddings


def append(representation: Tensor, vectors: Tensor) -> Tensor:
    """Appends ``(batch, e)`` to ``(..., batch, d)``: ``(..., batch, d + e)``."""
    expanded = vectors.expand(*representation.shape[:-1], vectors.shape[-1])
    return torch.cat([representation, expanded.to(representation.dtype)], dim=-1)
