"""Feed-forward layers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Units(nn.Linear):
    """A last layer, which outputs a logit, a score or a few other numbers per row. No ReLU follows it.

    It computes in the precision of its weights, under autocast too: bfloat16 has 8 significant bits, so that thousands
    of rows would have the same score, and values around 10,000 would be multiples of 64.
    """

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))


def mlp(in_dim: int, hidden: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """ReLU layers of the widths `hidden`, from ``(..., in_dim)`` to ``(..., hidden[-1])``; the identity if it is empty.

    The initial weights preserve the scale of a signal through any number of layers (He et al., ICCV 2015). The initial
    weights of `nn.Linear` would make it 2.4 times smaller in each layer, and trunks with many layers would start to
    learn late.
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
