"""HTLNet: its units and gradient rule, calculated by hand, and where its gradients stop."""

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.special import expit
from torch import Tensor
from torch.nn.functional import logsigmoid

from models.build import DenseModel, build_dense
from models.config import CoreGradients, ModelConfig
from models.gradients import CoreRule, core_coefficients
from models.layers.fusion import InformationFusion
from models.layers.label_embedding import LabelEmbedding, mean_draw
from models.trunks.base import TrunkOutput, this_worker_alone
from tests.models.parts import INPUTS, SCENARIOS, SMALL, context, embedded, trunk

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


def label_embedding(temperature: float, p: float) -> tuple[LabelEmbedding, Tensor]:
    unit = LabelEmbedding(2, temperature)
    with torch.no_grad():
        unit.table.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))  # so that the output is [p, 1 - p]
    return unit, torch.tensor([[math.log(p), math.log(1 - p)]])


@pytest.mark.parametrize("p", [1e-6, 0.05, 0.3, 0.5, 0.9])
def test_evaluation_embeds_the_mean_of_a_drawn_label_in_closed_form(p: float) -> None:
    """At tau = 1, with odds r: ``P(z + L + L' > 0) = r (r - 1 - log r) / (r - 1)^2``, and 1 / 2 for r = 1."""
    unit, prediction = label_embedding(1.0, p)
    r = p / (1 - p)
    mean = 0.5 if p == 0.5 else r * (r - 1 - math.log(r)) / (r - 1) ** 2
    assert unit.eval()(prediction, torch.arange(1), 0)[0].tolist() == pytest.approx([mean, 1 - mean], abs=1e-6)


@pytest.mark.parametrize("temperature", [1e-3, 0.1, 0.5, 0.9, 1.0, 1.1, 2.0, 10.0, 1e4])
@pytest.mark.parametrize("log_odds", [-12.0, -3.0, 0.0, 0.4, 2.0, 40.0])
def test_the_mean_of_a_drawn_label_is_the_integral(temperature: float, log_odds: float) -> None:
    def weighted(u: float) -> float:
        return float(expit((log_odds + u) / temperature) * expit(u) * expit(-u))

    edges = [
        edge for edge in (-log_odds - 20 * temperature, -log_odds, -log_odds + 20 * temperature) if -50 < edge < 50
    ]
    expected, _ = quad(weighted, -50, 50, points=[0.0, *edges], limit=1000)
    assert mean_draw(torch.tensor([log_odds]), temperature).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("temperature", [1e-3, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("p", [0.02, 0.4, 0.9])
def test_a_label_embedding_has_the_same_mean_in_training_and_in_evaluation(temperature: float, p: float) -> None:
    unit, prediction = label_embedding(temperature, p)
    keys = torch.arange(40_000)
    drawn = unit.train()(prediction.expand(len(keys), 2), keys, 0)
    error = drawn[:, 0].std().item() / len(keys) ** 0.5
    evaluated = unit.eval()(prediction, keys[:1], 0)[0]
    assert drawn.mean(0).tolist() == pytest.approx(evaluated.tolist(), abs=4 * error)


def test_labels_are_drawn_from_the_predicted_distribution() -> None:
    unit, prediction = label_embedding(1e-4, 0.25)  # at this temperature a draw is almost exactly 0 or 1
    drawn = unit.train()(prediction.expand(20_000, 2), torch.arange(20_000), 0)[:, 0]
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
    rows.predict = lambda task, hidden, before: logsigmoid(logits(hidden) * torch.tensor([1.0, -1.0]))
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
    rows.predict = lambda task, hidden, before: torch.tensor([[0.9, 0.1]]).log().expand(len(hidden), 2)
    after = module(x, rows).hidden
    torch.testing.assert_close(after[0], before[0])
    assert not torch.allclose(after[1], before[1]) and not torch.allclose(after[2], before[2])


def whole_model(conversion: str, dropout: float = 0.0) -> tuple[DenseModel, dict[str, Tensor]]:
    """A model with weights far from zero, and the predictions that its label embeddings read in the last forward."""
    torch.manual_seed(0)
    head = {"kind": "towers", "hidden": [16], "conversion": conversion, "dropout": dropout}
    trunk_section = {"kind": "htlnet", **SMALL["htlnet"]}
    model = build_dense(ModelConfig.model_validate({"trunk": trunk_section, "head": head}), INPUTS)
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, -0.6, 0.6)
    read: dict[str, Tensor] = {}
    labels = model.trunk.labels
    assert isinstance(labels, torch.nn.ModuleDict)
    for name, unit in labels.items():

        def keep(module: torch.nn.Module, arguments: tuple[Tensor, Tensor, int], name: str = name) -> None:
            read[name] = arguments[0]

        unit.register_forward_pre_hook(keep)
    return model, read


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("conversion", ["product", "direct"])
def test_label_embeddings_read_the_predictions_of_the_head(conversion: str, dropout: float) -> None:
    """In training: with the same dropout masks, and with `product` the marginal probability."""
    model, read = whole_model(conversion, dropout)
    predictions, _ = model.train()(embedded(), context(SCENARIOS))
    assert set(read) == {"click", "buy"}
    for k, name in enumerate(["click", "buy"]):
        assert torch.equal(read[name], predictions.parameters[k][:, :2]) and not read[name].requires_grad


def test_under_product_a_label_embedding_reads_the_product_along_the_chain() -> None:
    model, read = whole_model("product")
    _, output = model.eval()(embedded(), context(SCENARIOS))
    click, buy = (model.head.towers[name](output.hidden[k])[:, 0].sigmoid() for k, name in enumerate(["click", "buy"]))
    torch.testing.assert_close(read["click"].exp(), torch.stack([click, 1 - click], dim=1))
    torch.testing.assert_close(read["buy"].exp(), torch.stack([click * buy, 1 - click * buy], dim=1))


@pytest.mark.parametrize("conversion", ["product", "direct"])
def test_predictions_that_the_trunk_has_read_are_those_that_the_head_computes(conversion: str) -> None:
    model, _ = whole_model(conversion)
    predictions, output = model.train()(embedded(), context(SCENARIOS))
    again = model.head(TrunkOutput(output.hidden))
    for one, other in zip(predictions.parameters, again.parameters, strict=True):
        assert torch.equal(one, other)
