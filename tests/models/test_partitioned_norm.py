"""The normalisation of STAR: by hand for one row, two rows and many, and its moments over many batches."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.layers.partitioned_norm import EPSILON, PRIOR_ROWS, PartitionedNorm
from models.trunks.base import this_worker_alone
from tests.models.parts import SCENARIOS, context, names, trunk

MEAN, VARIANCE = 2.0, 9.0


def trained(scenarios: int = 2, momentum: float = 0.1) -> PartitionedNorm:
    """In training, with moving moments that are no longer the initial ones."""
    norm = PartitionedNorm(names("tab", scenarios), 1, momentum).train()
    norm.mean.fill_(MEAN)
    norm.variance.fill_(VARIANCE)
    return norm


def normalised(norm: PartitionedNorm, z: Tensor, scenario: list[int], weights: list[float] | None = None) -> Tensor:
    """Rows ``(rows, dim)`` of weight 1 by default."""
    row_weights = torch.ones(len(z)) if weights is None else torch.tensor(weights)
    return norm(z.unsqueeze(0), torch.tensor(scenario), row_weights, this_worker_alone).squeeze(0)


def expected(rows: list[float], share: float) -> list[float]:
    """Numpy's moments of the mixture of these rows and of the moving moments."""
    mean = share * np.mean(rows) + (1 - share) * MEAN
    square = share * np.mean(np.square(rows)) + (1 - share) * (VARIANCE + MEAN**2)
    return [(value - mean) / math.sqrt(square - mean**2 + EPSILON) for value in rows]


@pytest.mark.parametrize("rows", [[8.0], [-1.0, 5.0], [2.0] * 7 + [11.0] * 13])
def test_few_rows_are_normalised_by_the_mixture_of_their_moments_and_the_moving_moments(rows: list[float]) -> None:
    norm = trained()
    share = len(rows) / (len(rows) + PRIOR_ROWS)
    out = normalised(norm, torch.tensor([*rows, 100.0]).unsqueeze(1), [0] * len(rows) + [1])
    assert out[:-1, 0].tolist() == pytest.approx(expected(rows, share), rel=1e-5)
    step, mean = 0.1 * share, np.mean(rows)
    assert norm.mean[0].item() == pytest.approx(MEAN + step * (mean - MEAN), rel=1e-6)
    around = np.var(rows) + (mean - MEAN) ** 2
    assert norm.variance[0].item() == pytest.approx(VARIANCE + step * (around - VARIANCE), rel=1e-6)


@pytest.mark.parametrize("weight", [1.0, 1e-6, 1000.0])
def test_a_single_row_is_normalised_almost_as_in_evaluation_and_has_a_gradient(weight: float) -> None:
    """Whatever its weight is: the other rows, of another scenario, have weight 1."""
    row = torch.tensor([[MEAN + 3.0]], requires_grad=True)
    rows = torch.cat([row, torch.randn(50, 1)])
    out = normalised(trained(), rows, [0] + [1] * 50, [weight] + [1.0] * 50)[0]
    out.backward()
    evaluated = normalised(trained().eval(), rows, [0] + [1] * 50)[0].item()
    assert evaluated == pytest.approx(1.0, rel=1e-5)  # one standard deviation above the mean
    assert out.item() == pytest.approx(evaluated, rel=0.06)
    s, v = 1 / (1 + PRIOR_ROWS), VARIANCE + EPSILON / (1 - 1 / (1 + PRIOR_ROWS))
    assert row.grad is not None
    assert row.grad.item() == pytest.approx(math.sqrt(1 - s) * v / (v + s * 9.0) ** 1.5, rel=1e-5)


def test_many_rows_of_one_scenario_approach_batch_norm() -> None:
    """The paper's case: values, gradients and moving moments of 20,000 rows differ by the share of the moving ones."""
    torch.manual_seed(0)
    ours, theirs = PartitionedNorm(names("tab", 1), 3, momentum=0.1).train(), nn.BatchNorm1d(3, momentum=0.1)
    ours.mean.fill_(0.1)
    theirs.running_mean = torch.full((3,), 0.1)
    one = torch.randn(20_000, 3, requires_grad=True)
    two = one.detach().clone().requires_grad_()
    mixing = torch.randn(20_000, 3)
    out, reference = normalised(ours, one, [0] * 20_000), theirs(two)
    torch.testing.assert_close(out, reference, atol=1e-3, rtol=1e-3)
    (out * mixing).sum().backward()
    (reference * mixing).sum().backward()
    assert one.grad is not None and two.grad is not None
    torch.testing.assert_close(one.grad, two.grad, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(ours.mean[0], theirs.running_mean, atol=1e-4, rtol=1e-3)


def test_moments_leave_out_padding_and_other_scenarios() -> None:
    rows, scenario = torch.tensor([[1.0], [10.0], [3.0], [99.0], [20.0]]), [0, 2, 0, 0, 2]
    norm = trained(3)
    out = normalised(norm, rows, scenario, [1.0, 1.0, 1.0, 0.0, 1.0])
    share = 2 / (2 + PRIOR_ROWS)
    assert out[[0, 2], 0].tolist() == pytest.approx(expected([1.0, 3.0], share), rel=1e-5)
    assert out[[1, 4], 0].tolist() == pytest.approx(expected([10.0, 20.0], share), rel=1e-5)
    assert norm.mean[1].item() == MEAN and norm.variance[1].item() == VARIANCE


def test_weights_are_shares_of_the_moments_and_decide_the_effective_number_of_rows() -> None:
    """Weights 0.1 and 0.3: mean and variance by numpy, and ``0.4^2 / 0.1 = 1.6`` rows."""
    norm = trained(momentum=0.5)
    out = normalised(norm, torch.tensor([[1.0], [3.0], [7.0]]), [0, 0, 1], [0.1, 0.3, 0.0])
    share, mean, square = 1.6 / (1.6 + PRIOR_ROWS), 2.5, 0.25 * 1 + 0.75 * 9
    mixed = share * mean + (1 - share) * MEAN
    variance = share * square + (1 - share) * (VARIANCE + MEAN**2) - mixed**2
    scaled = [(value - mixed) / math.sqrt(variance + EPSILON) for value in (1.0, 3.0)]
    assert out[:2, 0].tolist() == pytest.approx(scaled, rel=1e-5)
    assert norm.mean.flatten().tolist() == pytest.approx([MEAN + 0.5 * share * 0.5, MEAN])
    around = square - mean**2 + 0.5**2
    assert norm.variance.flatten().tolist() == pytest.approx([VARIANCE + 0.5 * share * (around - VARIANCE), VARIANCE])


def test_evaluation_uses_the_moving_moments_and_all_scales_and_shifts() -> None:
    norm = trained().eval()
    norm.scenario_gamma.data[0], norm.scenario_beta.data[0] = 3.0, 0.5
    out = normalised(norm, torch.tensor([[MEAN + 3], [MEAN + 3]]), [0, 1])
    assert out[:, 0].tolist() == pytest.approx([3.5, 1.0], rel=1e-5)
    assert norm.mean.flatten().tolist() == [MEAN, MEAN]


@pytest.mark.parametrize("scale", [0.01, 1.0, 50.0])
def test_the_moments_of_a_new_scenario_start_from_those_of_the_whole_batch(scale: float) -> None:
    """So that a single row of it is not divided by 1, whatever the scale of the representation is. The first batch of a
    run with a single scenario is normalised by exactly its own moments."""
    torch.manual_seed(0)
    rows = scale * (1 + torch.randn(400, 2))
    norm = PartitionedNorm(names("tab", 3), 2, momentum=0.1).train()
    out = normalised(norm, rows, [0] * 399 + [1])
    mean, deviation = rows.mean(0), rows.std(0, correction=0)
    s = 1 / (1 + PRIOR_ROWS)
    distance = rows[-1] - mean
    assert out[-1].tolist() == pytest.approx(
        ((1 - s) * distance / ((1 - s) * (deviation.square() + s * distance.square()) + EPSILON).sqrt()).tolist(),
        rel=1e-3,
    )
    torch.testing.assert_close(norm.mean[1], mean + 0.1 * s * distance)
    assert norm.mean[2].tolist() == [0.0, 0.0] and norm.variance[2].tolist() == [1.0, 1.0]
    alone = normalised(PartitionedNorm(names("tab", 1), 2, momentum=0.1).train(), rows, [0] * 400)
    torch.testing.assert_close(alone, nn.BatchNorm1d(2)(rows), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("count", [1, 3])
def test_a_first_batch_of_equal_rows_has_small_gradients(count: int) -> None:
    """Its variance is 0: by itself it would multiply gradients by ``1 / sqrt(eps) = 316``."""
    row = torch.tensor([[0.3, -2.0]], requires_grad=True)
    norm = PartitionedNorm(names("tab", 2), 2, momentum=0.1).train()
    normalised(norm, row.expand(count, 2), [1] * count).sum().backward()
    assert row.grad is not None and 0 < row.grad.abs().max() <= count


@pytest.mark.parametrize("rows", [1, 2, 4, 20, 300])
def test_training_and_evaluation_agree_with_any_number_of_rows_per_batch(rows: int) -> None:
    """The moments that training uses, read from two rows of weight 0, and those of evaluation are the true ones."""
    torch.manual_seed(0)
    dim, mean, deviation = 40, 3.0, 2.0
    norm = PartitionedNorm(names("tab", 2), dim, momentum=0.1).train()
    counts = [rows, 500]
    scenario = [0] * rows + [1] * 500 + [0, 0]
    weights = [1.0] * sum(counts) + [0.0, 0.0]
    probes = torch.tensor([[0.0], [1.0]]).expand(2, dim)
    used: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        for batch in range(1600):
            data = torch.cat([mean + deviation * torch.randn(rows, dim), torch.randn(500, dim), probes])
            shift, at_one = normalised(norm, data, scenario, weights)[-2:]
            if batch >= 1300:
                used.append((-shift / (at_one - shift), (at_one - shift) ** -2 - EPSILON))
    means, variances = (torch.stack(part).double().numpy() for part in zip(*used, strict=True))
    assert np.mean(means) == pytest.approx(mean, abs=0.03 * deviation)
    assert np.mean(variances) == pytest.approx(deviation**2, rel=0.05)
    assert np.sqrt(np.mean((means - mean) ** 2)) < 0.15 * deviation, "no batch is far off"
    assert norm.mean[0].mean().item() == pytest.approx(mean, abs=0.03 * deviation)
    assert norm.variance[0].mean().item() == pytest.approx(deviation**2, rel=0.05)


def test_a_representation_per_task_has_the_moments_of_its_rows_and_not_more_rows() -> None:
    """Three equal copies of the rows give the same output and the same moving moments as one copy."""
    torch.manual_seed(0)
    x = torch.randn(5, 6)
    found = []
    for copies in (x, x.expand(3, 5, 6)):
        torch.manual_seed(1)
        module = trunk("star", 6).train()
        found.append((module(copies, context(SCENARIOS)).hidden, dict(module.named_buffers())))
    torch.testing.assert_close(found[1], found[0])
