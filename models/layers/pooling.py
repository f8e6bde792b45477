"""Pools the rows of a sample to one vector."""

from torch import Tensor


def divide_by_length(total: Tensor, lengths: Tensor) -> Tensor:
    """Divides sums over the rows of a sample, ``(batch, dim)``, by their number ``(batch,)``; no rows give zeros."""
    return total / lengths.clamp(min=1).unsqueeze(1)
