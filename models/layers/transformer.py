"""A Transformer block that takes its normalisations as an input."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm


class ConditionalBlock(nn.Module):
    """One post-norm block, ``A = CLN1(H + MHSA(H)), Z = CLN2(A + FFN(A))`` with

        CLN(x) = gamma * (x - mean) / sqrt(var + eps) + beta

    where gamma and beta belong to a condition; all other weights are shared.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))

    def forward(self, rows: Tensor, inside: Tensor, norms: Tensor) -> Tensor:
        """Encodes a sequence under every condition.

        Args:
            rows: ``(batch, length, dim)``, or ``(conditions, batch, length, dim)`` after an earlier block.
            inside: ``(batch, length)`` bool, False for padding.
            norms: ``(conditions, 2, 2, dim)``: gamma and beta for each of the two normalisations.

        Returns:
            ``(conditions, batch, length, dim)``. Values at padding have no meaning and do not affect other positions.
        """
        # Nothing depends on the condition before the first normalisation, so the first block attends once for all.
        attended = _normalise(rows + self._attend(rows, inside), norms[:, 0])
        return _normalise(attended + self.feed_forward(attended), norms[:, 1])

    def _attend(self, rows: Tensor, inside: Tensor) -> Tensor:
        split = self.qkv(rows).unflatten(-1, (3, self._heads, -1)).transpose(-4, -2)  # (..., heads, 3, length, d)
        query, key, value = split.unbind(-3)
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        # The smallest number, not -inf, which would give NaN for a sequence without rows.
        scores = scores.masked_fill(~inside[:, None, None, :], torch.finfo(scores.dtype).min)
        return self.out((scores.softmax(-1).to(value.dtype) @ value).transpose(-3, -2).flatten(-2))


def _normalise(x: Tensor, norm: Tensor) -> Tensor:
    """Normalises under every condition.

    Args:
        x: ``(batch, length, dim)`` or ``(conditions, batch, length, dim)``.
        norm: ``(conditions, 2, dim)``, gamma and beta.

    Returns:
        ``(conditions, batch, length, dim)``.
    """
    gamma, beta = norm[:, :, None, None].unbind(1)
    return gamma * layer_norm(x, x.shape[-1:]) + beta
