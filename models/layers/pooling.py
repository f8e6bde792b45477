"""Pools the rows of a sample to one vector."""

import torch
from torch import Tensor


def divide_by_length(total: Tensor, lengths: Tensor) -> Tensor:
    """Divides sums over the rows of a sample, ``(batch, dim)``, by their number ``(batch,)``; no rows give zeros."""
    return total / lengths.clamp(min=1).unsqueeze(1)


def divide_by_weight(total: Tensor, weights: Tensor, lengths: Tensor) -> Tensor:
    """Divides weighted sums over the rows of a sample, ``(batch, dim)``, by the sum of their weights.

    Args:
        total: sums; zeros where all weights are 0, and then returned as they are.
        weights: of all rows, not negative, ``(rows,)``.
        lengths: rows of each sample, ``(batch,)``.
    """
    sums = torch.segment_reduce(weights, "sum", lengths=lengths.long(), axis=0, initial=0.0)
    return total / torch.where(sums > 0, sums, 1.0).unsqueeze(1)
