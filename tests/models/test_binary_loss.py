"""The weight of positives and the focal loss, against plain PyTorch and the closed form of their minimum."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from models.binary import binary_loss, focal_logit, focal_odds
from models.heads.towers import HeadOutput
from models.inputs import Task
from models.loss_config import LossConfig
from models.losses import task_losses, weighted_task_losses
from models.task_weights import TaskWeights

LABELS = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 0.0])
LOGITS = torch.tensor([-9.0, -2.5, 0.0, 0.3, 4.0, 11.0], dtype=torch.float64)
GAMMAS = [0.3, 0.5, 1.0, 2.0, 5.0]


def of_logits(logits: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    return binary_loss(logsigmoid(logits), logsigmoid(-logits), labels, config)


def sigmoid_focal_loss(inputs: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """torchvision.ops.sigmoid_focal_loss with alpha < 0 (no weights) and reduction "none"."""
    p = torch.sigmoid(inputs)
    ce_loss = binary_cross_entropy_with_logits(inputs, targets, reduction="none")
    p_t = p * targets + (1 - p) * (1 - targets)
    return ce_loss * ((1 - p_t) ** gamma)


def log_odds_of_minimum(probability: NDArray[np.float64], gamma: float) -> NDArray[np.float64]:
    """Log-odds of the rate at which the focal loss is least: where its derivative by the probability is 0."""
    p = probability
    of_positive = (1 - p) ** gamma / p - gamma * (1 - p) ** (gamma - 1) * np.log(p)
    of_negative = p**gamma / (1 - p) - gamma * p ** (gamma - 1) * np.log(1 - p)
    return np.log(of_negative / of_positive)


def value_and_gradient(loss: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    return loss.detach(), torch.autograd.grad(loss.sum(), logits)[0]


def minimise(loss: Callable[[], Tensor], parameter: Tensor) -> None:
    optimizer = torch.optim.LBFGS(
        [parameter], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=1e-18
    )

    def evaluated() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(evaluated)


@pytest.mark.parametrize("weight", [0.05, 1.0, 3.0, 1000.0])
def test_a_weight_of_positives_is_that_of_pytorch_at_the_logit_of_the_weighted_rate(weight: float) -> None:
    """With positives W times as often, the odds are W times as large: the prediction is that of the log itself."""
    ours, theirs = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    labels = LABELS.double()
    reference = binary_cross_entropy_with_logits(
        theirs + np.log(weight), labels, pos_weight=torch.tensor(weight), reduction="none"
    )
    loss = of_logits(ours, labels, LossConfig(positive_weight=weight))
    for value, expected in zip(value_and_gradient(loss, ours), value_and_gradient(reference, theirs), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_the_focal_loss_is_that_of_torchvision_at_the_logit_that_belongs_to_the_prediction(gamma: float) -> None:
    inner = LOGITS.clone().requires_grad_()
    odds = torch.from_numpy(log_odds_of_minimum(torch.sigmoid(LOGITS).numpy(), gamma)).requires_grad_()
    loss = of_logits(odds, LABELS.double(), LossConfig(focal=gamma))
    reference = sigmoid_focal_loss(inner, LABELS.double(), gamma)
    torch.testing.assert_close(loss, reference, rtol=1e-6, atol=1e-12)
    step = 1e-5
    around = [log_odds_of_minimum(torch.sigmoid(LOGITS + s).numpy(), gamma) for s in (-step, step)]
    slope = torch.from_numpy((around[1] - around[0]) / (2 * step))
    ours, theirs = (value_and_gradient(*pair)[1] for pair in ((loss, odds), (reference, inner)))
    torch.testing.assert_close(ours * slope, theirs, rtol=1e-4, atol=1e-9)


@given(st.floats(-80, 80), st.floats(0.01, 10))
def test_the_logit_of_the_focal_loss_is_found_for_all_odds(logit: float, gamma: float) -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        start = torch.tensor([logit], dtype=dtype)
        again = focal_logit(focal_odds(start, gamma), gamma)
        torch.testing.assert_close(again, start, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("config", [{"positive_weight": 20}, {"focal": 2}, {"positive_weight": 5, "focal": 1.5}])
@pytest.mark.parametrize("rate", [0.002, 0.1, 0.5, 0.93])
def test_the_prediction_is_the_rate_of_the_log(config: dict[str, float], rate: float) -> None:
    """The minimum of the expected loss; without the correction, a weight of 20 would predict .69 for a rate of .1."""
    logit = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    labels, weights = torch.tensor([0.0, 1.0]).double(), torch.tensor([1 - rate, rate]).double()

    minimise(lambda: (weights * of_logits(logit.expand(2), labels, LossConfig.model_validate(config))).sum(), logit)
    assert torch.sigmoid(logit).item() == pytest.approx(rate, rel=1e-5)


def product_losses(
    units: Tensor, labels: Tensor, click: LossConfig, buy: LossConfig
) -> tuple[Tensor, Tensor, HeadOutput]:
    """Mean losses and probabilities of a chain click -> buy under the head `product`, from its two logits per row."""
    tasks = (Task("click", "binary", loss=click), Task("buy", "binary", after=0, loss=buy))
    yes, no = logsigmoid(units), logsigmoid(-units)
    bought = torch.stack([yes[:, 0] + yes[:, 1], torch.logaddexp(no[:, 0], yes[:, 0] + no[:, 1])], dim=1)
    output = HeadOutput(tasks, (torch.stack([yes[:, 0], no[:, 0]], dim=1), bought))
    weights = torch.ones(len(units), dtype=units.dtype)
    return task_losses(output, labels, weights, weights.sum()), output.scores(), output


CONFIGS = [LossConfig(positive_weight=30), LossConfig(focal=2), LossConfig(positive_weight=8, focal=1)]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("of", ["click", "buy", "both"])
def test_probabilities_and_conditional_probabilities_of_a_product_stay_those_of_the_log(
    config: LossConfig, of: str
) -> None:
    """300 rows of which 60 are clicked and 12 bought: P(click), P(buy) and P(buy | click) at the minimum."""
    labels = torch.zeros(300, 2, dtype=torch.float64)
    labels[:60, 0], labels[:12, 1] = 1, 1
    units = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    plain = LossConfig()
    configs = (config if of != "buy" else plain, config if of != "click" else plain)

    minimise(lambda: product_losses(units.expand(300, 2), labels, *configs)[0].sum(), units)
    scores = product_losses(units.detach(), labels[:1], *configs)[1][0]
    assert scores.tolist() == pytest.approx([0.2, 0.04], rel=1e-4)
    assert (scores[1] / scores[0]).item() == pytest.approx(0.2, rel=1e-4)
    assert torch.sigmoid(units[0, 1]).item() == pytest.approx(0.2, rel=1e-4)


@pytest.mark.parametrize("config", [*CONFIGS, LossConfig(focal=0.5), LossConfig(positive_weight=1e6, focal=8)])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_extreme_logits_have_finite_losses_and_gradients(config: LossConfig, label: float) -> None:
    values = [-1e6, -3000.0, -100.0, -20.0, 0.0, 20.0, 100.0, 3000.0, 1e6]
    pairs = torch.cartesian_prod(torch.tensor(values), torch.tensor(values)).requires_grad_()
    losses, scores, output = product_losses(pairs, torch.full((len(pairs), 2), label), config, config)
    losses.sum().backward()
    assert torch.isfinite(losses).all() and torch.isfinite(scores).all() and (losses >= 0).all()
    assert pairs.grad is not None and torch.isfinite(pairs.grad).all()
    totals = TaskWeights(torch.ones_like(output.scores()), torch.full((2,), float(len(pairs))), torch.tensor(1.0))
    weighted = weighted_task_losses(output, torch.full((len(pairs), 2), label), totals)
    torch.testing.assert_close(weighted, losses)


def test_a_wrong_prediction_costs_more_the_more_certain_it_is_and_a_right_one_is_nearly_free_with_focal() -> None:
    logits = torch.linspace(-12, 12, 200, dtype=torch.float64)
    for config in CONFIGS:
        losses = of_logits(logits, torch.ones_like(logits), config)
        assert (losses.diff() < 0).all()
    easy = torch.tensor([4.0])
    plain, focal = (of_logits(easy, torch.ones(1), LossConfig(focal=gamma)) for gamma in (0, 2))
    assert focal < plain / 2


def test_the_default_loss_is_the_cross_entropy_bit_by_bit() -> None:
    yes, no = logsigmoid(LOGITS.float()), logsigmoid(-LOGITS.float())
    assert torch.equal(binary_loss(yes, no, LABELS, LossConfig()), -(LABELS * yes + (1 - LABELS) * no))
