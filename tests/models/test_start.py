"""A model starts at the base rates and means of its labels, and stays finite for any output units."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.build import DenseModel, build_dense
from models.config import ModelConfig
from models.continuous import CONTINUOUS
from models.inputs import LabelSummary, ModelInputs, Task
from models.loss_config import LOSSES, LossConfig
from models.losses import task_losses
from tests.models.parts import BOTTOMS, INPUTS, SMALL, context, embedded

ROWS = 2000
CLICK, BUY = 0.02, 0.001
generator = np.random.default_rng(0)
AMOUNTS = np.where(generator.random(100_000) < 0.3, generator.lognormal(9.5, 1.2, 100_000), 0.0)
"""Labels around 10,000, most of which are zero."""


def summary(labels: np.ndarray, rate_after: float = 0.5) -> LabelSummary:
    logs = np.log(labels[labels > 0])
    rate = float((labels > 0).mean())
    return LabelSummary(
        float(labels.mean()), float(labels.std()), rate, rate_after, float(logs.mean()), float(logs.std())
    )


def binary(rate: float, rate_after: float) -> LabelSummary:
    return LabelSummary(rate, math.sqrt(rate), rate, rate_after, 0.0, 0.0)


LABELLED = replace(
    INPUTS,
    tasks=(
        Task("click", "binary", labels=binary(CLICK, CLICK)),
        Task("buy", "binary", after=0, labels=binary(BUY, BUY / CLICK)),
        *(Task(loss, "continuous", loss=LossConfig(loss=loss), labels=summary(AMOUNTS)) for loss in LOSSES),
    ),
)


def model_of(bottom: str, trunk: str, inputs: ModelInputs, conversion: str = "product") -> DenseModel:
    """A model with its default widths, new."""
    torch.manual_seed(0)
    target = {"target": "item"} if "target" in BOTTOMS[bottom] else {}
    sections = {
        "bottom": {"kind": bottom, **target},
        "trunk": {"kind": trunk},
        "head": {"kind": "towers", "conversion": conversion},
    }
    return build_dense(ModelConfig.model_validate(sections), inputs)


def first_step(model: DenseModel, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Scores ``(rows, tasks)`` and losses ``(tasks,)`` of a first batch in training."""
    batch = embedded(ROWS)
    for values in (batch.features, batch.sequences):
        for name in values:
            values[name] *= 0.1  # tables start small
    rows = context(torch.stack([torch.randint(3, (ROWS,)), torch.randint(2, (ROWS,))], dim=1))
    predictions, _ = model(batch, rows)
    return predictions.scores(), task_losses(predictions, labels, rows.weights, rows.weight_total)


def labels_of(inputs: ModelInputs) -> Tensor:
    torch.manual_seed(1)
    click = torch.arange(ROWS) < CLICK * ROWS
    buy = torch.arange(ROWS) < BUY * ROWS
    amounts = torch.from_numpy(AMOUNTS[:ROWS]).float()
    return torch.stack([click.float(), buy.float(), *[amounts] * (len(inputs.tasks) - 2)], dim=1)


def entropy(rate: float) -> float:
    return -rate * math.log(rate) - (1 - rate) * math.log1p(-rate)


@pytest.mark.parametrize(("bottom", "trunk"), product(BOTTOMS, SMALL))
def test_the_first_predictions_are_near_the_base_rates(bottom: str, trunk: str) -> None:
    """Not exactly, because the other weights are random. Without known labels, the rates start near .5 and .25, and the
    log losses at 7 and 36 times the entropy."""
    model = model_of(bottom, trunk, LABELLED)
    scores, losses = first_step(model, labels_of(LABELLED))
    names = LABELLED.task_names
    means = dict(zip(names, scores.mean(0).tolist(), strict=True))
    expected = {"click": CLICK, "buy": BUY, **dict.fromkeys(LOSSES, AMOUNTS.mean())}
    for name, value in expected.items():
        assert 1 / 4 < means[name] / value < 4, name
    first = dict(zip(names, losses.tolist(), strict=True))
    assert first["click"] < 1.25 * entropy(CLICK) and first["buy"] < 1.25 * entropy(BUY)
    losses.sum().backward()
    units = [model.head.towers[name][-1].bias.grad for name in ("ziln", "tweedie")]
    assert all(bias is not None and bias.abs().max() < 1000 for bias in units), units


@pytest.mark.parametrize("conversion", ["product", "direct"])
def test_a_task_after_another_starts_at_its_own_rate(conversion: str) -> None:
    """With `product`, its unit is P(task | after)."""
    model = model_of("concat", "shared_bottom", LABELLED, conversion)
    for name in LABELLED.task_names:  # without the random weights, the start is exact
        torch.nn.init.zeros_(model.head.towers[name][-1].weight)
    scores, losses = first_step(model, labels_of(LABELLED))
    means = [AMOUNTS.mean()] * 2
    torch.testing.assert_close(scores[0, :4].tolist(), [CLICK, BUY, *means], rtol=1e-5, atol=0)
    torch.testing.assert_close(losses[:2].tolist(), [entropy(CLICK), entropy(BUY)], rtol=1e-4, atol=0)
    values = dict(zip(LABELLED.task_names, scores[0].tolist(), strict=True))
    assert values["tweedie"] == pytest.approx(AMOUNTS.mean(), rel=1e-5)
    log_normal = summary(AMOUNTS).rate * math.exp(summary(AMOUNTS).log_mean + summary(AMOUNTS).log_deviation ** 2 / 2)
    assert values["ziln"] == pytest.approx(log_normal, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_start_is_where_the_gradient_of_the_labels_is_zero(loss: str) -> None:
    """For all labels together no step of the biases would help: the base rate is learned before training begins."""
    values = np.log1p(AMOUNTS[AMOUNTS > 0]) if LOSSES[loss].of_logarithms else AMOUNTS
    labels = torch.from_numpy(values)
    start = torch.tensor(CONTINUOUS[loss].start(summary(values)), dtype=torch.float64, requires_grad=True)
    CONTINUOUS[loss].loss(start.expand(len(labels), -1), labels, LossConfig(loss=loss)).mean().backward()
    assert start.grad is not None
    # The mean is not the minimum of huber; its gradient is at most delta.
    assert start.grad.abs().max() < (1.0 if loss == "huber" else 1e-6)


def test_a_model_without_known_labels_starts_as_before() -> None:
    """At random, near .5; only the biases of the output units differ."""
    unknown = replace(LABELLED, tasks=tuple(replace(task, labels=None) for task in LABELLED.tasks))
    one, two = (model_of("din", "mmoe", inputs).state_dict() for inputs in (unknown, LABELLED))
    differing = {name for name in one if not torch.equal(one[name], two[name])}
    assert differing == {f"head.towers.{name}.1.bias" for name in LABELLED.task_names}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "labels",
    [
        LabelSummary(0.0, 0.0, 0.5 / 101, 0.5 / 101, 0.0, 1.0),  # 100 labels, all zero
        LabelSummary(7.0, 0.0, 100.5 / 101, 0.5, math.log(7.0), 0.0),  # all equal
        LabelSummary(3e38, 0.0, 0.5, 0.5, 88.6, 5.0),  # the largest
    ],
)
def test_any_labels_give_a_finite_start(loss: str, labels: LabelSummary) -> None:
    start = torch.tensor([CONTINUOUS[loss].start(labels)])
    assert start.isfinite().all() and CONTINUOUS[loss].value(start).isfinite().all()


UNITS = st.floats(-1e6, 1e6, width=32)


@pytest.mark.parametrize("loss", ["ziln", "tweedie"])
@given(units=st.tuples(UNITS, UNITS, UNITS), label=st.sampled_from([0.0, 1e-3, 1.0, 1e4, 1e8]))
def test_exponents_are_bounded(loss: str, units: tuple[float, ...], label: float) -> None:
    """Before, a mean of the logarithm of 90 was a prediction of infinity, and evaluation refused the whole split."""
    outputs = torch.tensor([units[: CONTINUOUS[loss].units]], requires_grad=True)
    value = CONTINUOUS[loss].value(outputs)
    losses = CONTINUOUS[loss].loss(outputs, torch.tensor([label]), LossConfig(loss=loss))
    assert value.isfinite().all() and value.min() >= 0
    (value.log1p().sum() + losses.sum()).backward()
    assert outputs.grad is not None and outputs.grad.isfinite().all()
    if loss == "tweedie":
        assert losses.isfinite().all()


@pytest.mark.parametrize("start", [-1e4, -100.0, 100.0, 1e4])
def test_a_unit_beyond_the_bound_of_its_exponent_comes_back(start: float) -> None:
    """Before, its gradient was zero: the loss stayed finite and training continued with a useless tower."""
    units = torch.tensor([[start]], requires_grad=True)
    optimizer = torch.optim.SGD([units], lr=abs(start) / 200)
    for step in range(1000):
        if step == 400:
            optimizer.param_groups[0]["lr"] = 0.05
        optimizer.zero_grad()
        CONTINUOUS["tweedie"].loss(units, torch.tensor([20.0]), LossConfig(loss="tweedie")).sum().backward()
        torch.nn.utils.clip_grad_norm_([units], 1.0)
        optimizer.step()
    assert CONTINUOUS["tweedie"].value(units).item() == pytest.approx(20.0, rel=0.1)
