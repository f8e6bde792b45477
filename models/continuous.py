"""The losses of continuous targets: the units that a tower outputs, their loss, and the value that they predict.

The requirements of each loss on a task, and the keys that it reads, are in models/loss_config.py.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import huber_loss, softplus

from models.inputs import LabelSummary
from models.loss_config import LossConfig

LARGEST_EXPONENT = 88.0
"""Bound of the exponents of `ziln`, `tweedie` and `weighted_logistic`: a little above it, exp overflows in float32."""
_LEAST_DEVIATION = 0.1
"""Where standard deviations start at least, because gradients are divided by their squares."""
_LOG_DEVIATIONS = (4.0, 1.5)
"""Bounds of the logarithm of the standard deviation of `lognormal`, below and above zero."""
_LARGEST_TANH = 0.9
"""Part of a bound at which a standard deviation starts at most: beyond it, the bend leaves hardly any gradient."""


@dataclass(frozen=True)
class ContinuousLoss:
    """A loss of continuous targets."""

    units: int
    loss: Callable[[Tensor, Tensor, LossConfig], Tensor]  # units (batch, units), labels (batch,) -> (batch,)
    value: Callable[[Tensor], Tensor]  # units (batch, units) -> (batch,)
    start: Callable[[LabelSummary], tuple[float, ...]]
    """Biases of the units with which a model starts: they predict the same for all rows."""
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


def _ziln_mean(units: Tensor) -> Tensor:
    logit, mean, deviation = _lognormal(units)
    return logit.sigmoid() * (mean + deviation.square() / 2).clamp(max=LARGEST_EXPONENT).exp()


def _start_of_ziln(labels: LabelSummary) -> tuple[float, ...]:
    deviation = max(labels.log_deviation, _LEAST_DEVIATION)
    return log_odds(labels.rate), labels.log_mean, deviation + math.log(-math.expm1(-deviation))  # inverse of softplus


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
    bound = torch.where(log_deviation > 0, _LOG_DEVIATIONS[1], _LOG_DEVIATIONS[0])
    return (bound * (log_deviation / bound).tanh()).exp()


def _start_of_logarithm(labels: LabelSummary) -> tuple[float, ...]:
    log_deviation = math.log(max(labels.deviation, _LEAST_DEVIATION))
    bound = _LOG_DEVIATIONS[1] if log_deviation > 0 else _LOG_DEVIATIONS[0]
    return labels.mean, bound * math.atanh(min(log_deviation / bound, _LARGEST_TANH))


def _tweedie(units: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    """Negative log-likelihood of a Tweedie distribution with mean exp(z) and 1 < power < 2, without the terms that do
    not depend on z. Beyond `LARGEST_EXPONENT`, above or below zero, z counts as this bound, also for the gradient.

    Joergensen, The Theory of Dispersion Models, 1997.
    """
    z, power = _exponent(units), config.power
    loss = ((2 - power) * z).exp() / (2 - power) - labels * ((1 - power) * z).exp() / (1 - power)
    return _refuse_negative(loss, labels)


def _exponent(units: Tensor) -> Tensor:
    z = units[:, 0]
    bounded = z.detach().clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT)
    return bounded + (z - z.detach())  # with the gradient of z: without one, it could never come back


def _exponential(units: Tensor) -> Tensor:
    return _exponent(units).exp()


def _start_at_mean(labels: LabelSummary) -> tuple[float, ...]:
    return (labels.mean,)


def _start_at_log_of_mean(labels: LabelSummary) -> tuple[float, ...]:
    return (math.log(labels.mean) if labels.mean > 0 else 0.0,)


def log_odds(rate: float) -> float:
    """The logit of a probability that is neither 0 nor 1."""
    return math.log(rate) - math.log1p(-rate)


def _weighted_logistic(units: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    """Cross-entropy of a row that counts as a negative of weight 1 and as a positive with its label as weight.

    Its minimum is at the odds exp(z) = mean label. Covington, Adams, Sargin, Deep Neural Networks for YouTube
    Recommendations, RecSys 2016, section 4.2; there a row with a positive label is no negative, so that the odds are
    slightly larger, by the factor rows / (rows with the label 0).
    """
    z = units[:, 0]
    return _refuse_negative(softplus(z) + labels * softplus(-z), labels)


def _refuse_negative(loss: Tensor, labels: Tensor) -> Tensor:
    """Makes the loss NaN where a label is negative, which these distributions do not allow. NaN stops training with an
    error."""
    return torch.where(labels < 0, math.nan, loss)


CONTINUOUS: dict[str, ContinuousLoss] = {
    "mse": ContinuousLoss(1, _squared_error, _first, _start_at_mean),
    "huber": ContinuousLoss(1, _huber, _first, _start_at_mean),
    "ziln": ContinuousLoss(3, _zero_inflated_lognormal, _ziln_mean, _start_of_ziln),
    "lognormal": ContinuousLoss(2, _lognormal_likelihood, _first, _start_of_logarithm, _deviation),
    "tweedie": ContinuousLoss(1, _tweedie, _exponential, _start_at_log_of_mean),
    "weighted_logistic": ContinuousLoss(1, _weighted_logistic, _exponential, _start_at_log_of_mean),
}
