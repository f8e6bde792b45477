"""The losses of continuous targets: the units that a tower outputs, their loss, and the value that they predict.

The requirements of each loss on a task, and the keys that it reads, are in models/loss_config.py.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import huber_loss, softplus

from models.loss_config import LossConfig


@dataclass(frozen=True)
class ContinuousLoss:
    """A loss of continuous targets."""

    units: int
    loss: Callable[[Tensor, Tensor, LossConfig], Tensor]  # units (batch, units), labels (batch,) -> (batch,)
    value: Callable[[Tensor], Tensor]  # units (batch, units) -> (batch,)
    deviation: Callable[[Tensor], Tensor] | None = None
    """Of a loss of logarithms that predicts the standard deviation too: units (batch, units) -> (batch,)."""


def _first(units: Tensor) -> Tensor:
    return units[:, 0]


def _squared_error(units: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    return (units[:, 0] - labels).square()


def _huber(units: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    return huber_loss(units[:, 0], labels, reduction="none", delta=config.delta)


def _zero_inflated_lognormal(units: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    """Cross-entropy of "the label is above zero", plus the log-normal's negative log-likelihood where it is.

    Wang, Liu, Miao, A Deep Probabilistic Model for Customer Lifetime Value Prediction, 2019.
    """
    logit, mean, deviation = _lognormal(units)
    above = labels > 0
    log_label = torch.where(above, labels, 1.0).log()
    likelihood = log_label + deviation.log() + 0.5 * math.log(2 * math.pi)
    likelihood = likelihood + ((log_label - mean) / deviation).square() / 2
    return _refuse_negative(softplus(torch.where(above, -logit, logit)) + above * likelihood, labels)


def _lognormal_mean(units: Tensor) -> Tensor:
    logit, mean, deviation = _lognormal(units)
    return logit.sigmoid() * (mean + deviation.square() / 2).exp()


def _lognormal(units: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logit of "the label is above zero", mean and standard deviation of its logarithm; the minimum of the standard
    deviation is that of the authors' code."""
    logit, mean, deviation = units.unbind(1)
    return logit, mean, softplus(deviation).clamp(min=math.sqrt(1e-7))


def _lognormal_likelihood(units: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    """Negative log-likelihood of a normal distribution of the labels, which are logarithms."""
    deviation = _deviation(units)
    return ((labels - units[:, 0]) / deviation).square() / 2 + deviation.log() + 0.5 * math.log(2 * math.pi)


def _deviation(units: Tensor) -> Tensor:
    """Standard deviation of the logarithm: the exponential of the second unit, which is bent to stay within -4 and 1.5.

    The mean of the log-normal distribution is thus at most exp(4.5² / 2) = 23,000 times its median.
    """
    log_deviation = units[:, 1]
    bound = torch.where(log_deviation > 0, 1.5, 4.0)
    return (bound * (log_deviation / bound).tanh()).exp()


def _tweedie(units: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    """Negative log-likelihood of a Tweedie distribution with mean exp(z) and 1 < power < 2, without the terms that do
    not depend on z.

    Joergensen, The Theory of Dispersion Models, 1997.
    """
    z, power = units[:, 0], config.power
    loss = ((2 - power) * z).exp() / (2 - power) - labels * ((1 - power) * z).exp() / (1 - power)
    return _refuse_negative(loss, labels)


def _refuse_negative(loss: Tensor, labels: Tensor) -> Tensor:
    """Makes the loss NaN where a label is negative, which these distributions do not allow. NaN stops training with an
    error."""
    return torch.where(labels < 0, math.nan, loss)


CONTINUOUS: dict[str, ContinuousLoss] = {
    "mse": ContinuousLoss(1, _squared_error, _first),
    "huber": ContinuousLoss(1, _huber, _first),
    "ziln": ContinuousLoss(3, _zero_inflated_lognormal, _lognormal_mean),
    "lognormal": ContinuousLoss(2, _lognormal_likelihood, _first, _deviation),
    "tweedie": ContinuousLoss(1, _tweedie, lambda units: units[:, 0].exp()),
}
