"""Feed-forward layers."""

from collections.abc import Sequence

from torch import nn


def mlp(in_dim: int, hidden: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """ReLU layers of the widths `hidden`, ``(..., in_dim)`` to ``(..., hidden[-1])``; the identity where empty."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(in_dim, width), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        in_dim = width
    return nn.Sequential(*layers)
