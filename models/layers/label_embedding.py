"""Embedding of a predicted label."""

import torch
from torch import Tensor, nn

from models.layers.noise import gumbel


class LabelEmbedding(nn.Module):
    """``le = [p, 1 - p] E``, where p is a relaxed draw from the predicted distribution (HTLNet, label embedding unit):

        a1 = (log y + g1) / tau,   a0 = (log(1 - y) + g0) / tau,   p = exp(a1) / (exp(a1) + exp(a0))

    The Gumbel noise g is drawn only in training. Evaluation uses the mean of p over the noise, so that the embedding
    has the same mean in both. Without noise, p would be too extreme: for y = .05 and tau = 1 it is .05, its mean .12.
    The true label would be unknown when the model serves, and a hard prediction would pass on its full error.
    """

    def __init__(self, dim: int, temperature: float) -> None:
        super().__init__()
        self._temperature = temperature
        self.table = nn.Parameter(torch.empty(2, dim))  # rows for label 1 and for label 0
        nn.init.xavier_uniform_(self.table)

    def forward(self, prediction: Tensor, noise_keys: Tensor, draw: int) -> Tensor:
        """Embeds a label.

        Args:
            prediction: log y and log (1 - y), ``(batch, 2)``.
            noise_keys: ``(batch,)``, see `gumbel`.
            draw: see `gumbel`.

        Returns:
            ``(batch, dim)``.
        """
        choices = prediction.float()
        if self.training:
            choices = choices + gumbel(noise_keys, draw, choices.unsqueeze(0).shape).squeeze(0)
            return (choices / self._temperature).softmax(1) @ self.table
        p = mean_draw(choices[:, 0] - choices[:, 1], self._temperature)
        return torch.stack([p, 1 - p], dim=1) @ self.table


def mean_draw(log_odds: Tensor, temperature: float) -> Tensor:
    """Mean of ``sigmoid((z + L) / tau)``, where L = g1 - g0 has the logistic distribution.

    The sigmoid is the distribution function of a second logistic number L', so that this is ``P(z + L + tau L' > 0)``,
    in which L and L' may change places. The sum is over the one whose distribution function, of the other, is smoother:

        sum over L of density(L) sigmoid(y + s L),   y = z, s = tau for tau <= 1;   y = z / tau, s = 1 / tau above

    The trapezoid rule is exact to float32 here for every tau: both factors are analytic within pi of the real axis.

    Args:
        log_odds: z, ``(batch,)``.
        temperature: tau.

    Returns:
        ``(batch,)``.
    """
    width = 0.5
    draws = torch.arange(-20, 20 + width, width, device=log_odds.device)
    densities = draws.sigmoid() * (-draws).sigmoid() * width
    shift, slope = (log_odds, temperature) if temperature <= 1 else (log_odds / temperature, 1 / temperature)
    return (shift.unsqueeze(1) + slope * draws).sigmoid() @ densities
