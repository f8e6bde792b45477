"""Embedding of a predicted label."""

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from models.layers.noise import gumbel


class LabelEmbedding(nn.Module):
    """``le = [p, 1 - p] E``, where p is a relaxed draw from the predicted distribution (HTLNet, label embedding unit):

        a1 = (log y + g1) / tau,   a0 = (log(1 - y) + g0) / tau,   p = exp(a1) / (exp(a1) + exp(a0))

    The Gumbel noise g is drawn only in training: evaluation uses the predicted distribution, sharpened by tau.
    The true label would be unknown when the model serves, and a hard prediction would pass on its full error.
    """

    def __init__(self, dim: int, temperature: float) -> None:
        super().__init__()
        self._temperature = temperature
        self.table = nn.Parameter(torch.empty(2, dim))  # rows for label 1 and for label 0
        nn.init.xavier_uniform_(self.table)

    def forward(self, logit: Tensor, noise_keys: Tensor, draw: int) -> Tensor:
        """Maps logits ``(batch,)`` to ``(batch, dim)``; `gumbel` explains `noise_keys` ``(batch,)`` and `draw`."""
        logits = logit.float()
        choices = torch.stack([logsigmoid(logits), logsigmoid(-logits)], dim=1)
        if self.training:
            choices = choices + gumbel(noise_keys, draw, choices.unsqueeze(0).shape).squeeze(0)
        return (choices / self._temperature).softmax(1) @ self.table
