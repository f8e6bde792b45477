"""Feed-forward layers."""

from collections.abc import Sequence

from torch import nn


class Units(nn.Linear):
    """A last layer: the logit, the score or the few numbers of a row. No ReLU follows."""


def mlp(in_dim: int, hidden: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """ReLU layers of the widths `hidden`, ``(..., in_dim)`` to ``(..., hidden[-1])``; the identity where empty.

    Initial weights keep the size of a signal through any number of layers (He et al., ICCV 2015). With those of
    `nn.Linear` each layer makes it 2.4 times smaller, and trunks of many layers begin to learn late.
    """
    layers: list[nn.Module] = []
    for width in hidden:
        linear = nn.Linear(in_dim, width)
        nn.init.kaiming_uniform_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        in_dim = width
    return nn.Sequential(*layers)
