"""Normalisation with the moments of each row's own scenario."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from models.labels import label

EPSILON = 1e-5


class PartitionedNorm(nn.Module):
    """``z' = (gamma gamma_p) (z - mu_p) / sqrt(var_p + eps) + (beta + beta_p)`` (STAR, equations 2 and 3).

    In training, the moments are those of scenario p's rows in the global batch, by their weights, over all workers and
    without padding; in the paper each batch contains one scenario, here all of them. In evaluation, they are moving
    averages. The moving variance is measured around the moving mean: around the mean of its own batch it would be too
    small for a scenario that has few rows per batch, and zero for a single row. If a batch has no rows of a scenario,
    the averages of that scenario do not change.
    """

    def __init__(self, scenarios: Sequence[str], dim: int, momentum: float) -> None:
        super().__init__()
        self._momentum = momentum
        self.gamma = nn.Parameter(torch.ones(dim))
        self.beta = nn.Parameter(torch.zeros(dim))
        self.scenario_gamma = nn.Parameter(torch.ones(len(scenarios), dim))
        self.scenario_beta = nn.Parameter(torch.zeros(len(scenarios), dim))
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("mean", torch.zeros(len(scenarios), dim))
        self.register_buffer("variance", torch.ones(len(scenarios), dim))
        for tensor in ("scenario_gamma", "scenario_beta", "mean", "variance"):
            label(self, tensor, 0, scenarios)

    def forward(self, z: Tensor, scenario: Tensor, weights: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
        """Normalises.

        Args:
            z: ``(rows, dim)``.
            scenario: ``(rows,)``.
            weights: ``(rows,)``, 0 or more; 0 for padding.
            total: sum over all workers, differentiable.

        Returns:
            ``(rows, dim)``.
        """
        with torch.autocast(z.device.type, enabled=False):  # bfloat16 moments would be wrong in the third digit
            return self._normalise(z.float(), scenario, weights, total)

    def _normalise(self, z: Tensor, scenario: Tensor, weights: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
        mean, variance = self._moments(z, scenario, weights, total) if self.training else (self.mean, self.variance)
        gamma, beta = self.gamma * self.scenario_gamma, self.beta + self.scenario_beta
        scale = gamma * (variance + EPSILON).rsqrt()
        shift = beta - mean * scale
        # The backward of index_select takes a fifth of the time of the backward of indexing.
        return z * scale.index_select(0, scenario) + shift.index_select(0, scenario)

    def _moments(
        self, z: Tensor, scenario: Tensor, weights: Tensor, total: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Returns mean and variance of each scenario, ``(scenarios, dim)``, and updates the moving averages."""
        members = torch.zeros(len(self.mean), len(z), device=z.device).index_put(
            (scenario, torch.arange(len(z), device=z.device)), weights
        )
        sums = total(torch.cat([members @ z, members.sum(1, keepdim=True)], dim=1))
        weight = sums[:, -1:]
        divisor = torch.where(weight > 0, weight, 1.0)  # the weights of a scenario may add up to less than 1
        mean = sums[:, :-1] / divisor
        # A second pass, around the mean: the difference of two large squares would lose the precision of float32.
        around = total(
            members @ torch.cat([(z - m.index_select(0, scenario)).square() for m in (mean, self.mean)], dim=1)
        )
        variance, moving = (around / divisor).chunk(2, dim=1)
        with torch.no_grad():
            step = self._momentum * (weight > 0)
            self.mean += step * (mean - self.mean)
            self.variance += step * (moving - self.variance)
        return mean, variance
