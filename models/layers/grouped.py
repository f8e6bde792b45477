"""Many layers of one shape side by side: experts, or networks of scenarios and tasks.

Their weights are one parameter ``(groups, in, out)``: one multiplication runs all groups, and a group without rows gets
a gradient of exactly zero, as DDP needs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as drop
from torch.nn.functional import linear

from models.labels import label


@dataclass
class Groups:
    """Rows sorted by the group whose layers they go through."""

    order: Tensor  # (rows,), row numbers sorted by group
    places: Tensor  # (rows,), where each row stands in that order
    sizes: list[int]  # rows of each group

    @staticmethod
    def of(index: Tensor, count: int) -> "Groups":
        """Takes the group of each row, ``(rows,)``. Copies `count` numbers to the host, which a GPU waits for."""
        order = torch.argsort(index, stable=True)
        return Groups(order, torch.argsort(order), torch.bincount(index, minlength=count).tolist())

    def gather(self, x: Tensor) -> Tensor:
        """Rows ``(rows, d)`` in the order of the groups."""
        return x.index_select(0, self.order)

    def scatter(self, x: Tensor) -> Tensor:
        """Rows in the order of the groups back to where they came from."""
        return x.index_select(0, self.places)


class GroupedLinear(nn.Module):
    """A linear layer for each of `groups`, by name; gates have no bias and start nearly even, as `nn.Linear` does.

    All others are followed by a ReLU, and their weights start as those of `mlp`.
    """

    def __init__(self, groups: Sequence[str], in_dim: int, out_dim: int, is_gate: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(len(groups), in_dim, out_dim))
        self.bias = None if is_gate else nn.Parameter(torch.zeros(len(groups), out_dim))
        label(self, "weight", 0, groups)
        if self.bias is not None:
            label(self, "bias", 0, groups)
        bound = 1 / math.sqrt(in_dim) if is_gate else math.sqrt(6 / in_dim)
        nn.init.uniform_(self.weight, -bound, bound)

    def weights(self) -> tuple[Tensor, Tensor | None]:
        """Weight ``(groups, in, out)`` and bias ``(groups, out)`` as they are applied."""
        return self.weight, self.bias

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        """``(groups, rows, in)`` to ``(groups, rows, out)``; ``(rows, in)`` goes through every group."""
        weight, bias = self.weights()
        if x.dim() == 2:  # as one large multiplication
            groups, in_dim, out_dim = weight.shape
            joined = weight.transpose(1, 2).reshape(groups * out_dim, in_dim)
            out = linear(x, joined, bias.reshape(-1) if bias is not None else None)
            out = out.view(len(x), groups, out_dim).transpose(0, 1)
        else:
            out = torch.bmm(x, weight) if bias is None else torch.baddbmm(bias.unsqueeze(1), x, weight)
        return out.relu() if relu else out

    def ragged(self, x: Tensor, sizes: list[int], relu: bool = False) -> Tensor:
        """Rows ``(rows, in)`` sorted by group, each through its own: ``(rows, out)``."""
        weight, bias = self.weights()
        parts = zip(x.split(sizes), weight.unbind(), strict=True)
        if bias is None:
            out = torch.cat([rows @ own for rows, own in parts])
        else:
            out = torch.cat([torch.addmm(b, rows, own) for (rows, own), b in zip(parts, bias.unbind(), strict=True)])
        return out.relu() if relu else out


class GroupedMLP(nn.Module):
    """A ReLU network of one shape for each of `groups`; the identity where `hidden` is empty."""

    make_layer: type[GroupedLinear] = GroupedLinear

    def __init__(self, groups: Sequence[str], in_dim: int, hidden: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        widths = [in_dim, *hidden]
        self.layers = nn.ModuleList(self.make_layer(groups, a, b) for a, b in zip(widths, widths[1:], strict=False))
        self._dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """``(groups, rows, in)`` to ``(groups, rows, out)``; ``(rows, in)`` goes through every group."""
        for layer in self.layers:
            x = self._drop(layer(x, relu=True))
        return x

    def ragged(self, x: Tensor, sizes: list[int]) -> Tensor:
        """Rows ``(rows, in)`` sorted by group, each through its own: ``(rows, out)``."""
        for layer in self.layers:
            assert isinstance(layer, GroupedLinear)
            x = self._drop(layer.ragged(x, sizes, relu=True))
        return x

    def _drop(self, x: Tensor) -> Tensor:
        return drop(x, self._dropout, self.training)
