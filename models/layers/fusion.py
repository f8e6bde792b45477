"""Attention over the representations or labels of earlier tasks."""

import math

import torch
from torch import Tensor, nn


class InformationFusion(nn.Module):
    """``out = sum_i w_i h1(u_i)``, ``w_i = softmax_i( <h2(u_i), h3(u_i)> / sqrt(dim) )`` (HTLNet, equations 13, 14).

    Query and key come from the same element. With one element this is ``h1(u)``.
    """

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self._scale = 1 / math.sqrt(dim)
        self.value, self.query, self.key = (nn.Linear(in_dim, dim) for _ in range(3))

    def forward(self, elements: Tensor) -> Tensor:
        """Maps ``(elements, batch, in_dim)`` to ``(batch, dim)``."""
        scores = (self.query(elements) * self.key(elements)).sum(-1) * self._scale
        return torch.einsum("nb,nbd->bd", scores.softmax(0), self.value(elements))
