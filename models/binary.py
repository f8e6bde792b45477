"""The loss of binary tasks: cross-entropy, with a weight of positives and with the focusing of the focal loss."""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from models.loss_config import LossConfig

_NEWTON_STEPS = 6
_FAR = 60.0
"""The slope ratio of a logit beyond this is that of this logit in float32, and its exponential does not overflow."""


def binary_loss(log_yes: Tensor, log_no: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    """Loss of each row, ``(rows,)``, whose minimum is where the prediction is the rate of positives in the log.

    With the weight W of positives and the gamma of the focal loss (Lin et al., ICCV 2017), the loss of a probability q
    is

        -W y (1 - q)^gamma log q - (1 - y) q^gamma log(1 - q)

    For a rate r it has its minimum not at q = r, but where ``focal_odds(logit q) = logit r + log W``. So it is computed
    for the q that belongs in this way to the predicted P(task): then P itself is least at r. This is exact for any P, a
    product of probabilities too, and changes neither the prediction nor P(task | after).

    Args:
        log_yes: log P(task), ``(rows,)``.
        log_no: log (1 - P(task)), ``(rows,)``.
        labels: 0 or 1, ``(rows,)``.
        config: keys of the task.
    """
    weight, gamma = config.positive_weight, config.focal
    if weight != 1 or gamma != 0:
        logit = log_yes - log_no + math.log(weight)
        logit = focal_logit(logit, gamma) if gamma else logit
        log_yes, log_no = logsigmoid(logit), logsigmoid(-logit)
    if gamma == 0:
        return -(weight * labels * log_yes + (1 - labels) * log_no)
    of_positive, of_negative = (gamma * log_no).exp() * log_yes, (gamma * log_yes).exp() * log_no
    return -(weight * labels * of_positive + (1 - labels) * of_negative)


def focal_odds(logit: Tensor, gamma: float) -> Tensor:
    """Log-odds of the rate at which the focal loss without weights has its minimum at a probability with this logit.

    Charoenphakdee et al., On Focal Loss for Class-Posterior Probability Estimation, CVPR 2021, in
    logarithms: with r(s) = log(1 + e^s) / e^s, the value is
    ``(gamma + 1) s + log(1 + gamma r(s)) - log(1 + gamma r(-s))``.
    """
    return (gamma + 1) * logit + (gamma * _ratio(logit)).log1p() - (gamma * _ratio(-logit)).log1p()


def focal_logit(log_odds: Tensor, gamma: float) -> Tensor:
    """The inverse of `focal_odds`, by Newton's method: its slope hardly changes, so that a few steps are exact."""
    with torch.no_grad():
        logit = log_odds / (gamma + 1)
        for _ in range(_NEWTON_STEPS):
            logit = logit + (log_odds - focal_odds(logit, gamma)) / _slope(logit, gamma)
        start, slope = focal_odds(logit, gamma), _slope(logit, gamma)
    return logit + (log_odds - start) / slope  # one more step, which carries the gradient


def _slope(logit: Tensor, gamma: float) -> Tensor:
    """Derivative of `focal_odds`."""
    slopes = [gamma * _ratio_slope(s) / (1 + gamma * _ratio(s)) for s in (logit, -logit)]
    return gamma + 1 + slopes[0] + slopes[1]


def _ratio(logit: Tensor) -> Tensor:
    bounded = logit.clamp(-_FAR, _FAR)
    return softplus(bounded) * (-bounded).exp()


def _ratio_slope(logit: Tensor) -> Tensor:
    return (-logit).sigmoid() - _ratio(logit)
