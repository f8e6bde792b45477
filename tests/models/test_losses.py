"""Losses of continuous targets, compared with other libraries, and the weights of tasks."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import mean_tweedie_deviance
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from models.config import ObjectiveConfig
from models.continuous import CONTINUOUS
from models.heads.towers import HeadOutput
from models.inputs import Task
from models.loss_config import BINARY_KEYS, LOSSES, LossConfig
from models.objective import Objective
from tests.models.parts import TASKS


def losses(config: LossConfig, units: list[list[float]], labels: list[float]) -> list[float]:
    return CONTINUOUS[config.loss].loss(torch.tensor(units), torch.tensor(labels), config).tolist()


def test_huber_by_hand() -> None:
    config = LossConfig(loss="huber", delta=2.0)
    assert losses(config, [[0.0], [0.0], [1.0]], [1.0, 5.0, 1.0]) == pytest.approx([0.5, 2 * (5 - 1), 0.0])


def test_zero_inflated_lognormal_is_its_likelihood() -> None:
    config = LossConfig(loss="ziln")
    logit, mean, raw = 0.4, 1.1, -0.3
    deviation, p = math.log1p(math.exp(raw)), 1 / (1 + math.exp(-logit))
    expected = [
        -math.log(1 - p),
        -math.log(p) - stats.lognorm.logpdf(3.7, s=deviation, scale=math.exp(mean)),
    ]
    assert losses(config, [[logit, mean, raw]] * 2, [0.0, 3.7]) == pytest.approx(expected, rel=1e-5)
    value = CONTINUOUS["ziln"].value(torch.tensor([[logit, mean, raw]])).item()
    assert value == pytest.approx(p * stats.lognorm.mean(s=deviation, scale=math.exp(mean)), rel=1e-5)


def test_lognormal_is_the_likelihood_of_a_lognormal_distribution() -> None:
    """The labels are logarithms, so the density of exp(label) differs by its derivative, the label itself. The
    gradients of both units are those of PyTorch's distribution."""
    labels = torch.tensor([0.0, 1.3, 4.0, -0.2])
    units = torch.tensor([[0.4, -0.3], [1.1, 0.0], [-2.0, 1.2], [0.0, -3.0]], requires_grad=True)
    loss = CONTINUOUS["lognormal"].loss(units, labels, LossConfig(loss="lognormal"))
    (gradient,) = torch.autograd.grad(loss.sum(), units)
    deviation = CONTINUOUS["lognormal"].deviation
    assert deviation is not None
    expected = -torch.distributions.LogNormal(units[:, 0], deviation(units)).log_prob(labels.exp()) - labels
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), units)[0])
    scipy = [
        -stats.lognorm.logpdf(math.exp(y), s=s, scale=math.exp(mu)) - y
        for y, mu, s in zip(labels.tolist(), units[:, 0].tolist(), deviation(units).tolist(), strict=True)
    ]
    assert loss.tolist() == pytest.approx(scipy, rel=1e-5)


def test_the_deviation_of_lognormal_is_bounded_and_always_has_a_gradient_near_its_start() -> None:
    deviation = CONTINUOUS["lognormal"].deviation
    assert deviation is not None
    units = torch.tensor([[0.0, raw] for raw in (-1e30, -math.inf, -8.0, -0.01, 0.0, 0.01, 3.0, 1e30, math.inf)])
    values = deviation(units)
    assert values[4] == 1 and values[[0, 1]].tolist() == pytest.approx([math.exp(-4)] * 2)
    assert values[[7, 8]].tolist() == pytest.approx([math.exp(1.5)] * 2)
    assert values[[3, 5]].tolist() == pytest.approx([math.exp(-0.01), math.exp(0.01)], rel=1e-5)
    near = torch.tensor([[0.0, -8.0], [0.0, 3.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(deviation(near).sum(), near)
    assert (gradient[:, 1] > 0).all()


def test_lognormal_finds_mean_and_deviation_of_the_logarithm() -> None:
    rng = np.random.default_rng(0)
    labels = torch.tensor(rng.normal(2.0, 0.7, 4000), dtype=torch.float32)
    units = torch.zeros(1, 2, requires_grad=True)
    optimizer = torch.optim.Adam([units], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        CONTINUOUS["lognormal"].loss(units.expand(4000, -1), labels, LossConfig(loss="lognormal")).mean().backward()
        optimizer.step()
    predictions = HeadOutput((Task("t", "continuous", loss=LossConfig(loss="lognormal")),), (units.detach(),))
    deviations = predictions.deviations()
    assert deviations is not None
    assert predictions.scores().item() == pytest.approx(labels.mean().item(), rel=1e-3)
    assert deviations.item() == pytest.approx(labels.std().item(), rel=1e-3)


def test_tasks_without_a_deviation_have_none_or_zero() -> None:
    two = torch.tensor([[0.3, -0.5]])
    tasks = (Task("a", "binary"), Task("b", "continuous"), Task("c", "continuous", loss=LossConfig(loss="lognormal")))
    assert HeadOutput(tasks[:2], (two, two[:, :1])).deviations() is None
    deviations = HeadOutput(tasks, (two, two[:, :1], two)).deviations()
    assert deviations is not None and deviations[0, :2].tolist() == [0, 0] and deviations[0, 2] > 0


@pytest.mark.parametrize("power", [1.2, 1.5, 1.9])
def test_tweedie_differs_from_the_deviance_by_terms_without_the_prediction(power: float) -> None:
    config = LossConfig(loss="tweedie", power=power)
    labels, one, two = [0.0, 2.5], [[0.3], [0.3]], [[-0.8], [1.1]]
    ours = np.subtract(losses(config, one, labels), losses(config, two, labels))
    values = [CONTINUOUS["tweedie"].value(torch.tensor(units)).tolist() for units in (one, two)]
    deviances = [
        [mean_tweedie_deviance([y], [v], power=power) for y, v in zip(labels, predicted, strict=True)]
        for predicted in values
    ]
    assert ours == pytest.approx(np.subtract(*deviances) / 2, rel=1e-4)


def test_weighted_logistic_is_the_cross_entropy_of_a_negative_and_a_weighted_positive() -> None:
    """Loss and gradient, against PyTorch's cross-entropy of two rows: label 0 of weight 1, label 1 of weight y."""
    config, labels = LossConfig(loss="weighted_logistic"), torch.tensor([0.0, 0.3, 1.0, 40.0, 2.5e6]).double()
    ours = torch.tensor([[-2.0], [0.0], [1.5], [3.0], [14.0]], dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    z = theirs[:, 0]
    negative = binary_cross_entropy_with_logits(z, torch.zeros(5).double(), reduction="none")
    positive = binary_cross_entropy_with_logits(z, torch.ones(5).double(), weight=labels, reduction="none")
    loss = CONTINUOUS["weighted_logistic"].loss(ours, labels, config)
    torch.testing.assert_close(loss, negative + positive)
    loss.sum().backward()
    (negative + positive).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    by_hand = z.sigmoid() - labels * (-z).sigmoid()
    torch.testing.assert_close(ours.grad[:, 0] if ours.grad is not None else None, by_hand.detach())


def test_weighted_logistic_is_least_at_the_mean() -> None:
    labels = torch.tensor([0.0, 0.0, 0.0, 2.0, 13.0], dtype=torch.float64)
    z = torch.tensor(math.log(15 / 5), dtype=torch.float64, requires_grad=True)
    kind, config = CONTINUOUS["weighted_logistic"], LossConfig(loss="weighted_logistic")
    kind.loss(z.expand(5, 1), labels, config).mean().backward()
    assert z.grad is not None and z.grad.item() == pytest.approx(0, abs=1e-15)
    assert kind.value(z.view(1, 1)).item() == pytest.approx(3.0)


@pytest.mark.parametrize("z", [-1e6, -200.0, 200.0, 1e6])
@pytest.mark.parametrize("label", [0.0, 1e6])
def test_weighted_logistic_is_finite_for_extreme_units(z: float, label: float) -> None:
    units = torch.tensor([[z]], requires_grad=True)
    kind = CONTINUOUS["weighted_logistic"]
    loss = kind.loss(units, torch.tensor([label]), LossConfig(loss="weighted_logistic"))
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(kind.value(units)).all()
    assert units.grad is not None and units.grad.abs().item() <= max(1.0, label)


@pytest.mark.parametrize("loss", [loss for loss, facts in LOSSES.items() if facts.of_amounts])
def test_the_loss_of_a_negative_amount_is_nan(loss: str) -> None:
    config = LossConfig(loss=loss)
    units = [[0.1] * CONTINUOUS[loss].units] * 2
    assert [math.isnan(value) for value in losses(config, units, [-1.0, 0.0])] == [True, False]


def fitted(loss: str) -> tuple[float, Tensor]:
    """The value that a fit without features predicts, and its labels, of which 40% are zero."""
    rng = np.random.default_rng(0)
    labels = torch.tensor(np.where(rng.random(4000) < 0.4, 0.0, rng.lognormal(0.5, 0.6, 4000)), dtype=torch.float32)
    kind, config = CONTINUOUS[loss], LossConfig(loss=loss)
    units = torch.zeros(1, kind.units, requires_grad=True)
    optimizer = torch.optim.Adam([units], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        kind.loss(units.expand(len(labels), -1), labels, config).mean().backward()
        optimizer.step()
    return kind.value(units).item(), labels


@pytest.mark.parametrize("loss", ["mse", "ziln", "tweedie", "weighted_logistic"])
def test_the_prediction_is_the_mean(loss: str) -> None:
    value, labels = fitted(loss)
    assert value == pytest.approx(labels.mean().item(), rel=0.02)


def test_huber_balances_the_clipped_errors() -> None:
    value, labels = fitted("huber")
    assert (value - labels).clamp(-1, 1).mean().item() == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("loss", CONTINUOUS)
def test_every_loss_has_its_minimum_within_the_labels(loss: str) -> None:
    value, labels = fitted(loss)
    assert labels.min() < value < labels.max()


@pytest.mark.parametrize("loss", CONTINUOUS)
def test_every_loss_has_one_value_per_row(loss: str) -> None:
    kind, labels = CONTINUOUS[loss], torch.tensor([0.0, 0.5, 3.0])
    units = torch.linspace(-2, 2, 3 * kind.units).view(3, kind.units)
    together = kind.loss(units, labels, LossConfig(loss=loss))
    alone = [kind.loss(units[[i]], labels[[i]], LossConfig(loss=loss)) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))
    assert kind.value(units).shape == (3,)
    if not LOSSES[loss].can_be_negative:
        assert (together >= 0).all()


def test_every_loss_has_facts_and_a_function_and_its_own_keys() -> None:
    assert set(LOSSES) == set(CONTINUOUS)
    of_losses = {key for facts in LOSSES.values() for key in facts.keys}
    assert of_losses | set(BINARY_KEYS) == set(LossConfig.model_fields) - {"loss"}


def test_fixed_weights() -> None:
    tasks = (Task("a", "binary", weight=2.0), Task("b", "continuous", weight=0.5))
    objective = Objective(tasks, ObjectiveConfig())
    assert objective(torch.tensor([1.0, 4.0]))[0].tolist() == [2.0, 2.0]
    assert not list(objective.parameters()) and not objective.state_dict() and not objective.diagnostics


def test_uncertainty_by_hand_and_its_minimum() -> None:
    """The minimum of exp(-s) L + s / 2 is at exp(-s) = 1 / (2 L); the factor is the same for both kinds of task."""
    objective = Objective(TASKS, ObjectiveConfig(weighting="uncertainty"))
    values = torch.tensor([0.5, 0.1, 3.0])
    weighted, factors = objective(values)
    assert weighted.tolist() == pytest.approx([0.5, 0.1, 1.5])
    assert factors.tolist() == [1.0, 1.0, 0.5]
    objective.log_variances.data.fill_(math.log(4))
    assert objective(values)[0].tolist() == pytest.approx(
        [0.125 + math.log(2), 0.025 + math.log(2), 0.375 + math.log(2)]
    )
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.05)
    for _ in range(500):
        optimizer.zero_grad()
        objective(values)[0].sum().backward()
        optimizer.step()
    assert objective(values)[1].tolist() == pytest.approx([1 / (2 * 0.5), 1 / (2 * 0.1), 1 / (2 * 3.0)], rel=1e-2)
