"""HTLNet: its units and gradient rule, calculated by hand, and where its gradients stop."""

import math

import pytest
import torch
from torch import Tensor

from models.config import CoreGradients
from models.gradients import CoreRule, core_coefficients
from models.layers.fusion import InformationFusion
from models.layers.label_embedding import LabelEmbedding
from models.trunks.base import this_worker_alone
from tests.models.parts import SCENARIOS, context, trunk

RULE = CoreGradients(kind="core")


def shared_gradient(gradients: list[list[float]], core: int = -1, **settings: float) -> list[float]:
    """The gradient of the shared embedding."""
    stacked = torch.tensor(gradients, dtype=torch.float64)
    core = core % len(gradients)
    factors = core_coefficients(stacked @ stacked.T, core, RULE.model_copy(update=settings))
    return (factors @ stacked).tolist()


def test_the_rule_by_hand() -> None:
    assert shared_gradient([[-1.0, 0.0], [3.0, 4.0]]) == pytest.approx([2.024, 4.732])
    assert shared_gradient([[1.0, 0.0], [3.0, 4.0]]) == pytest.approx([4.4, 4.0])


def test_projection_alone_rescaling_alone_and_half_a_projection() -> None:
    assert shared_gradient([[-1.0, 0.0], [3.0, 4.0]], gamma=0.0) == pytest.approx([3 - 0.64, 4 + 0.48])
    assert shared_gradient([[1.0, 0.0], [3.0, 4.0]], gamma=1.0) == pytest.approx([3 + 5, 4])
    assert shared_gradient([[-1.0, 0.0], [3.0, 4.0]], gamma=0.0, projection=0.5) == pytest.approx([3 - 0.82, 4 + 0.24])
    assert shared_gradient([[-1.0, 0.0], [3.0, 4.0]], gamma=0.0, projection=0.0) == pytest.approx([2.0, 4.0])


def test_the_ratio_of_lengths_is_clipped_both_ways() -> None:
    assert shared_gradient([[0.1, 0.0], [3.0, 4.0]], gamma=1.0) == pytest.approx([3 + 1.0, 4])
    assert shared_gradient([[1000.0, 0.0], [3.0, 4.0]], gamma=1.0) == pytest.approx([3 + 100.0, 4])


def test_the_steps_are_skipped_for_gradients_of_length_zero() -> None:
    assert shared_gradient([[0.0, 0.0], [3.0, 4.0]]) == [3.0, 4.0]
    assert shared_gradient([[-1.0, 2.0], [0.0, 0.0]]) == [-1.0, 2.0]
    assert shared_gradient([[0.0, 0.0], [0.0, 0.0]]) == [0.0, 0.0]


def test_the_core_gradient_is_never_changed_and_others_are_compared_only_with_it() -> None:
    """Two tasks that conflict with each other but not with the core task stay unchanged, unlike in PCGrad.

    The core task may be any task.
    """
    assert shared_gradient([[0.0, 1.0], [5.0, 0.0], [0.0, -1.0]], core=1, gamma=0.0) == pytest.approx([5.0, 0.0])
    assert shared_gradient([[-1.0, 1.0], [5.0, 0.0], [2.0, -1.0]], core=1, gamma=0.0) == pytest.approx([7.0, 0.0])


def test_the_rule_on_real_losses() -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(4, 3, requires_grad=True), torch.randn(4, 2, 2, requires_grad=True)]
    weights = torch.randn(3, 4, 3), torch.randn(3, 4, 2, 2)
    losses = torch.stack([(leaves[0] * a).sum() + (leaves[1] * b).pow(2).sum() for a, b in zip(*weights, strict=True)])
    rule = CoreRule(["click", "value", "buy"], CoreGradients(kind="core", core="value"))
    combined, measured = rule(losses, leaves, this_worker_alone)
    flat = torch.stack(
        [torch.cat([g.flatten() for g in torch.autograd.grad(loss, leaves, retain_graph=True)]) for loss in losses]
    )
    expected = core_coefficients((flat @ flat.T).double(), 1, RULE).float() @ flat
    torch.testing.assert_close(torch.cat([g.flatten() for g in combined]), expected)
    named = dict(zip(rule.diagnostics, measured.tolist(), strict=True))
    assert named["gradient_norm/value"] == pytest.approx(flat[1].norm().item(), rel=1e-5)
    cosine = torch.cosine_similarity(flat[0], flat[1], dim=0).item()
    assert named["gradient_cosine/click"] == pytest.approx(cosine, abs=1e-5)
    assert named["gradient_conflict/click"] == float(cosine < 0)
    assert "gradient_cosine/value" not in named


def label_embedding(temperature: float) -> tuple[LabelEmbedding, Tensor]:
    unit = LabelEmbedding(2, temperature)
    with torch.no_grad():
        unit.table.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))  # so that the output is [p, 1 - p]
    return unit, torch.tensor([math.log(0.25 / 0.75)])


@pytest.mark.parametrize(
    ("temperature", "p"), [(1.0, 0.25), (1e6, 0.5), (1e-3, 0.0), (0.5, 0.0625 / (0.0625 + 0.5625))]
)
def test_label_embedding_without_noise_by_hand(temperature: float, p: float) -> None:
    unit, logit = label_embedding(temperature)
    assert unit.eval()(logit, torch.arange(1), 0)[0].tolist() == pytest.approx([p, 1 - p], abs=1e-5)


def test_labels_are_drawn_from_the_predicted_distribution() -> None:
    unit, logit = label_embedding(1e-4)  # at this temperature a draw is almost exactly 0 or 1
    drawn = unit.train()(logit.expand(20_000), torch.arange(20_000), 0)[:, 0]
    assert ((drawn < 0.01) | (drawn > 0.99)).float().mean() > 0.99
    assert drawn.mean().item() == pytest.approx(0.25, abs=0.01)


def test_fusion_of_one_element_is_its_value_and_of_two_elements_by_hand() -> None:
    unit = InformationFusion(2, 2)
    with torch.no_grad():
        for linear in (unit.value, unit.query, unit.key):
            linear.weight.copy_(torch.eye(2))
            linear.bias.zero_()
    one = torch.tensor([[[3.0, 1.0]]])
    assert unit(one)[0].tolist() == [3.0, 1.0]
    both = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]])  # scores 1 and 4, over sqrt(2)
    share = 1 / (1 + math.exp(3 / math.sqrt(2)))
    assert unit(both)[0].tolist() == pytest.approx([share, 2 * (1 - share)])


def test_a_later_task_changes_no_earlier_tower_and_trains_its_label_table() -> None:
    torch.manual_seed(0)
    module = trunk("htlnet", 6)
    logits = torch.nn.Linear(module.out_dim, 1)
    rows = context(SCENARIOS)
    rows.logit = lambda task, hidden: logits(hidden)[:, 0]
    x = torch.randn(5, 6, requires_grad=True)
    module(x, rows).hidden[2].sum().backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert not [
        name for name in gradients if name.startswith(("firsts.click", "firsts.buy", "rests.click", "rests.buy"))
    ]
    assert not [name for name in gradients if name.startswith(("fused_representations.buy", "fused_labels.buy"))]
    assert {"labels.click.table", "labels.buy.table", "fused_labels.value.value.weight"} <= set(gradients)
    assert "firsts.value.0.weight" in gradients
    assert logits.weight.grad is None
    assert x.grad is not None and x.grad.abs().sum() > 0, "all tasks train the shared embedding"


def test_a_later_task_reads_earlier_predictions_and_representations() -> None:
    torch.manual_seed(0)
    module = trunk("htlnet", 6).eval()
    rows = context(SCENARIOS)
    x = torch.randn(5, 6)
    before = module(x, rows).hidden
    rows.logit = lambda task, hidden: torch.full((len(hidden),), 3.0)
    after = module(x, rows).hidden
    torch.testing.assert_close(after[0], before[0])
    assert not torch.allclose(after[1], before[1]) and not torch.allclose(after[2], before[2])
