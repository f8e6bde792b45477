"""Mixtures of experts: sums of the outputs of a GroupedMLP, weighted for each row by its gate."""

import torch
from torch import Tensor

from models.layers.grouped import GroupedMLP


def mixture(experts: GroupedMLP, z: Tensor, shares: Tensor) -> Tensor:
    """``sum_k shares_k f_k(z)``; every expert is computed on every row.

    Args:
        experts: one group per expert.
        z: ``(rows, d)``, or ``(gates, rows, d)`` if each gate has its own input.
        shares: ``(gates, rows, experts)``.

    Returns:
        ``(gates, rows, h)``.
    """
    outputs = experts(z.flatten(0, -2)).transpose(0, 1)  # (rows of all inputs, experts, h)
    if z.dim() == 2:
        return torch.bmm(shares.to(outputs.dtype).transpose(0, 1), outputs).transpose(0, 1)
    return torch.bmm(shares.to(outputs.dtype).flatten(0, 1).unsqueeze(1), outputs).view(*z.shape[:-1], -1)


def sparse_mixture(experts: GroupedMLP, z: Tensor, shares: Tensor, selected: Tensor) -> Tensor:
    """The same sum; each expert is computed only on the rows that selected it.

    Args:
        experts: one group per expert.
        z: ``(rows, d)``, or ``(gates, rows, d)``.
        shares: ``(gates, rows, experts)``.
        selected: ``(gates, rows, experts)`` bool; the other shares are ignored.

    Returns:
        ``(gates, rows, h)``.
    """
    gates, rows, count = shares.shape
    expert, row = selected.reshape(gates * rows, count).T.nonzero().unbind(1)  # sorted by expert
    sizes = torch.bincount(expert, minlength=count).tolist()
    inputs = z.reshape(-1, z.shape[-1]).index_select(0, row if z.dim() == 3 else row % rows)
    outputs = experts.ragged(inputs, sizes)
    weighted = outputs * shares.reshape(gates * rows, count)[row, expert].unsqueeze(1).to(outputs.dtype)
    total = outputs.new_zeros(gates * rows, outputs.shape[1]).index_add(0, row, weighted)
    return total.view(gates, rows, -1)
