"""Parallel layers of the same shape, one per group: experts, or networks of scenarios and tasks.

Their weights are one parameter ``(groups, in, out)``: one multiplication computes all groups, and a group without rows
has a gradient of exactly zero. DDP needs a gradient for every parameter.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as drop
from torch.nn.functional import linear

from models.labels import label
from models.weight_decay import spare


@dataclass
class Groups:
    """Rows sorted by the group whose layers process them."""

    order: Tensor  # (rows,), row numbers sorted by group
    positions: Tensor  # (rows,), position of each row in that order
    sizes: list[int]  # rows of each group

    @staticmethod
    def of(index: Tensor, count: int) -> "Groups":
        """Sorts rows by their group, ``(rows,)``. Copies `count` numbers to the host, for which a GPU has to wait."""
        order = torch.argsort(index, stable=True)
        return Groups(order, torch.argsort(order), torch.bincount(index, minlength=count).tolist())

    def gather(self, x: Tensor) -> Tensor:
        """Rows ``(rows, d)``, sorted by group."""
        return x.index_select(0, self.order)

    def scatter(self, x: Tensor) -> Tensor:
        """Rows sorted by group, back in their original order."""
        return x.index_select(0, self.positions)


class GroupedLinear(nn.Module):
    """One linear layer for each name in `groups`.

    Gates have no bias and are initialised like `nn.Linear`, so that their shares start nearly even. Every other layer
    is followed by a ReLU and initialised like `mlp`.
    """

    def __init__(self, groups: Sequence[str], in_dim: int, out_dim: int, is_gate: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(len(groups), in_dim, out_dim))
        self.bias = None if is_gate else nn.Parameter(torch.zeros(len(groups), out_dim))
        label(self, "weight", 0, groups)
        if self.bias is not None:
            label(self, "bias", 0, groups)
            spare(self, "bias")
        bound = 1 / math.sqrt(in_dim) if is_gate else math.sqrt(6 / in_dim)
        nn.init.uniform_(self.weight, -bound, bound)

    def weights(self) -> tuple[Tensor, Tensor | None]:
        """Returns the weight ``(groups, in, out)`` and bias ``(groups, out)`` that the layer applies."""
        return self.weight, self.bias

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        """Maps ``(groups, rows, in)`` to ``(groups, rows, out)``; all groups process ``(rows, in)``."""
        weight, bias = self.weights()
        if x.dim() == 2:  # one large multiplication for all groups
            groups, in_dim, out_dim = weight.shape
            joined = weight.transpose(1, 2).reshape(groups * out_dim, in_dim)
            out = linear(x, joined, bias.reshape(-1) if bias is not None else None)
            out = out.view(len(x), groups, out_dim).transpose(0, 1)
        else:
            out = torch.bmm(x, weight) if bias is None else torch.baddbmm(bias.unsqueeze(1), x, weight)
        return out.relu() if relu else out

    def ragged(self, x: Tensor, sizes: list[int], relu: bool = False) -> Tensor:
        """Maps rows ``(rows, in)`` that are sorted by group to ``(rows, out)``, each by its own group."""
        weight, bias = self.weights()
        parts = zip(x.split(sizes), weight.unbind(), strict=True)
        if bias is None:
            out = torch.cat([rows @ own for rows, own in parts])
        else:
            out = torch.cat([torch.addmm(b, rows, own) for (rows, own), b in zip(parts, bias.unbind(), strict=True)])
        return out.relu() if relu else out


class GroupedMLP(nn.Module):
    """ReLU networks of the same shape, one for each name in `groups`; the identity if `hidden` is empty."""

    make_layer: type[GroupedLinear] = GroupedLinear

    def __init__(self, groups: Sequence[str], in_dim: int, hidden: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        widths = [in_dim, *hidden]
        self.layers = nn.ModuleList(self.make_layer(groups, a, b) for a, b in zip(widths, widths[1:], strict=False))
        self._dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(groups, rows, in)`` to ``(groups, rows, out)``; all groups process ``(rows, in)``."""
        for layer in self.layers:
            x = self._drop(layer(x, relu=True))
        return x

    def ragged(self, x: Tensor, sizes: list[int]) -> Tensor:
        """Maps rows ``(rows, in)`` that are sorted by group to ``(rows, out)``, each by its own group."""
        for layer in self.layers:
            assert isinstance(layer, GroupedLinear)
            x = self._drop(layer.ragged(x, sizes, relu=True))
        return x

    def _drop(self, x: Tensor) -> Tensor:
        return drop(x, self._dropout, self.training)
