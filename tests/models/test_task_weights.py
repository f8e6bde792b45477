"""Weights of rows for tasks, and labels that do not exist: losses, moments and gradients."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from models.build import DenseModel
from models.config import ObjectiveConfig
from models.heads.towers import HeadOutput
from models.inputs import Task
from models.loss_config import LOSSES, LossConfig
from models.losses import task_losses, weighted_task_losses
from models.objective import Objective
from models.task_weights import TaskWeights
from models.trunks.base import Context, this_worker_alone
from tests.models.parts import BOTTOMS, INPUTS, SCENARIOS, SMALL, TASKS, context, dense, embedded

NAN = math.nan
LABELS = torch.tensor([[1.0, NAN, 2.0], [0.0, NAN, NAN], [1.0, NAN, 0.5], [0.0, NAN, 1.0], [NAN, NAN, 0.0]])
WEIGHTS = torch.tensor([[0.5, 0.0, 2.0], [0.1, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.25], [0.0, 0.0, 0.0]])


def weighted(values: Tensor, scenarios: list[list[int]] = SCENARIOS) -> Context:
    weights = TaskWeights.of(values, this_worker_alone)
    alone = context(scenarios[: len(values)])
    return replace(alone, weights=weights.rows, weight_total=weights.row_total, task_weights=weights)


def total_loss(model: DenseModel, labels: Tensor, rows: Context) -> Tensor:
    predictions, output = model(embedded(), rows)
    if rows.task_weights is None:
        losses = task_losses(predictions, labels, rows.weights, rows.weight_total).sum()
    else:
        losses = weighted_task_losses(predictions, labels, rows.task_weights).sum()
    return losses if output.penalty is None else losses + output.penalty


def test_losses_equal_plain_pytorch() -> None:
    logits, values = torch.tensor([0.3, -1.0, 2.0, 0.7, 5.0]), torch.tensor([1.0, 8.0, -1.0, 0.0, 9.0])
    parts = torch.stack([torch.nn.functional.logsigmoid(logits), torch.nn.functional.logsigmoid(-logits)], dim=1)
    predictions = HeadOutput(TASKS, (parts, parts, values.unsqueeze(1)))
    found = weighted_task_losses(predictions, LABELS, TaskWeights.of(WEIGHTS, this_worker_alone))
    click = binary_cross_entropy_with_logits(logits[:4], LABELS[:4, 0], weight=WEIGHTS[:4, 0], reduction="sum") / 3.6
    value = (2.0 * (1.0 - 2.0) ** 2 + 0.25 * (0.0 - 1.0) ** 2) / 2.25
    assert found.tolist() == pytest.approx([click.item(), 0.0, value])


@pytest.mark.parametrize(("bottom", "kind"), product(BOTTOMS, SMALL))
def test_missing_labels_give_finite_losses_and_a_gradient_for_every_parameter(bottom: str, kind: str) -> None:
    """Also where no row of the batch has a label of a task, and where no row has a label of any task."""
    for weights in (WEIGHTS, torch.zeros(5, 3)):
        torch.manual_seed(0)
        model = dense(bottom, kind)
        loss = total_loss(model, torch.where(weights > 0, LABELS, NAN), weighted(weights))
        loss.backward()
        assert loss.isfinite()
        wrong = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert wrong == []
        assert all(buffer.isfinite().all() for buffer in model.buffers())


@pytest.mark.parametrize(("bottom", "kind"), product(BOTTOMS, SMALL))
def test_weights_of_one_are_the_same_as_no_weights(bottom: str, kind: str) -> None:
    """Losses, auxiliary losses and moments: 0 for the padding, 1 for all other rows and tasks."""
    gradients = []
    for rows in (context(SCENARIOS, [1.0, 1, 1, 1, 0]), weighted(torch.tensor([[1.0] * 3] * 4 + [[0.0] * 3]))):
        torch.manual_seed(0)
        model = dense(bottom, kind)
        total_loss(model, LABELS.nan_to_num(0.0), rows).backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("scale", [1 / 128, 128.0])  # powers of two, so that nothing is rounded
def test_only_ratios_of_weights_matter(kind: str, scale: float) -> None:
    """A sum of weights below 1 is divided by itself like any other, in losses, auxiliary losses and moments."""
    weights = torch.tensor([[0.5, 0.2, 1.0], [0.1, 2.0, 0.3], [1.5, 0.7, 0.4], [0.0, 1.0, 0.25], [1.0, 1.0, 0.5]])
    found = []
    for factor in (1.0, scale):
        torch.manual_seed(0)
        model = dense("concat", kind)
        loss = total_loss(model, LABELS.nan_to_num(1.0), weighted(weights * factor))
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters()), *model.state_dict().values()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", SMALL)
def test_a_row_that_counts_for_no_task_changes_nothing(kind: str) -> None:
    gradients = []
    for count in (5, 4):
        torch.manual_seed(0)
        model, rows = dense("concat", kind), embedded()
        rows = replace(
            rows,
            features={name: value[:count] for name, value in rows.features.items()},
            sequences={name: value[:count] for name, value in rows.sequences.items()},
            lengths={name: value[:count] for name, value in rows.lengths.items()},
            numerics=rows.numerics[:count],
        )
        weights = weighted(WEIGHTS[:count])
        assert weights.task_weights is not None
        predictions, output = model(rows, weights)
        loss = weighted_task_losses(predictions, LABELS[:count], weights.task_weights).sum()
        (loss if output.penalty is None else loss + output.penalty).backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_row_without_a_label_may_have_any_prediction(loss: str) -> None:
    """Nothing trains the predictions of a scenario that a task does not have: they may be infinite, without effect."""
    task = Task("value", "continuous", loss=LossConfig(loss=loss))
    units = torch.tensor([[0.5] * 3, [1e30] * 3, [math.inf] * 3]).requires_grad_()
    predictions = HeadOutput((task,), (units,))
    weights = TaskWeights.of(torch.tensor([[2.0], [0.0], [0.0]]), this_worker_alone)
    losses = weighted_task_losses(predictions, torch.tensor([[1.0], [NAN], [-1.0]]), weights)
    losses.sum().backward()
    alone = task_losses(HeadOutput((task,), (units[:1],)), torch.ones(1, 1), torch.ones(1), torch.ones(()))
    assert losses.item() == pytest.approx(alone.item())
    assert units.grad is not None and units.grad[0, 0] != 0 and not units.grad[1:].any()


def test_the_learned_weight_of_a_task_without_labels_does_not_change() -> None:
    objective = Objective(TASKS, ObjectiveConfig(weighting="uncertainty"))
    weighted_losses, _ = objective(torch.tensor([0.7, 0.0, 2.0]), torch.tensor([True, False, True]))
    weighted_losses.sum().backward()
    assert objective.log_variances is not None and objective.log_variances.grad is not None
    assert objective.log_variances.grad.tolist() == pytest.approx([-0.7 + 0.5, 0.0, -1.0 + 0.5])


def test_the_selection_of_a_task_is_penalised_over_the_rows_that_have_its_label() -> None:
    """aesm: a task's own gate is not trained by rows of scenarios that do not have the task."""
    torch.manual_seed(0)
    model = dense("concat", "aesm", INPUTS)
    _, output = model(embedded(), weighted(torch.tensor([[1.0, 0.0, 1.0]] * 5)))
    assert output.penalty is not None
    output.penalty.backward()
    _, every = model(embedded(), weighted(torch.ones(5, 3)))
    assert every.penalty is not None and every.penalty > output.penalty
