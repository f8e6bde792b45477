"""AESM2: its selection, calculated by hand, and the properties of its layers."""

import math

import pytest
import torch
from torch import Tensor

from models.config import AESMConfig
from models.inputs import ModelInputs
from models.labels import expert_names
from models.layers.experts import mixture, sparse_mixture
from models.layers.grouped import GroupedMLP
from models.trunks.aesm import AESMTrunk, SelectionLayer, select
from tests.models.parts import INPUTS, SCENARIOS, TASKS, context, names, trunk

TWO_BY_THREE = torch.tensor([[2.0, 0.0, 1.0], [0.0, 2.0, 1.0]])  # gates by experts
NO_NOISE = torch.tensor(0.0)


def layer(gates: int, experts: int, **settings: object) -> SelectionLayer:
    config = AESMConfig(kind="aesm", experts=experts, hidden=[4], **settings)  # type: ignore[arg-type]
    return SelectionLayer(3, 2, names("tab", gates), config, number=0)


def with_logits(module: SelectionLayer, logits: Tensor) -> SelectionLayer:
    """The layer with gates that give every row the same logits."""
    with torch.no_grad():
        module.gates.weight.zero_()
        module.gates.bias.copy_(logits.flatten())
    return module


def test_selection_by_hand() -> None:
    own = torch.tensor(0)
    selected, specific, shared = select(TWO_BY_THREE, own, 1, 1)
    assert selected.tolist() == [True, False, True]
    assert specific.tolist() == pytest.approx([0.126928], abs=1e-6)
    assert shared.tolist() == pytest.approx([0.0], abs=1e-6)
    _, specific, shared = select(TWO_BY_THREE, own, 3, 3)
    assert specific.tolist() == pytest.approx([0.126928, 0.693147, 2.126928], abs=1e-6)
    assert shared.tolist() == pytest.approx([0.0, 0.433781, 0.433781], abs=1e-6)


@pytest.mark.parametrize(
    ("logits", "one_hot", "uniform"),
    [
        ([2.0, 0.0, 0.0], [0.2395, 2.2395, 2.2395], 0.4743),
        ([1.0, 1.0, 1.0], [1.0986, 1.0986, 1.0986], 0.0),
        ([3.0, 3.0, 0.0], [-math.log(0.48785), -math.log(0.48785), -math.log(0.02429)], 0.6191),
    ],
)
def test_distances_of_one_expert_by_hand(logits: list[float], one_hot: list[float], uniform: float) -> None:
    column = torch.tensor(logits).unsqueeze(1).expand(3, 3, 1)  # three rows, one per scenario
    _, specific, shared = select(column, torch.arange(3), 1, 1)
    assert specific.flatten().tolist() == pytest.approx(one_hot, abs=1e-3)
    assert shared.flatten().tolist() == pytest.approx([uniform] * 3, abs=1e-4)


def test_mixture_weights_by_hand_come_from_the_own_gate_only() -> None:
    module = with_logits(layer(2, 3), TWO_BY_THREE).eval()
    rows = torch.randn(2, 3), torch.zeros(2, 2), torch.tensor([0, 1]), NO_NOISE, torch.arange(2)
    out = module(*rows)
    weights = torch.tensor([[0.731059, 0.0, 0.268941], [0.0, 0.731059, 0.268941]])
    torch.testing.assert_close(out.shares[0], weights, atol=1e-6, rtol=0)
    assert (out.shares[0] == 0).tolist() == [[False, True, False], [True, False, False]]
    outputs = module.experts(rows[0])
    torch.testing.assert_close(out.hidden[0], torch.einsum("be,ebh->bh", out.shares[0], outputs))
    torch.testing.assert_close(out.mean_divergences(context([[0], [1]])), torch.tensor([0.126928, 0.0]))


def test_a_constant_on_all_gates_of_an_expert_changes_only_the_mixture() -> None:
    rows = torch.randn(1, 3), torch.zeros(1, 2), torch.tensor([0]), NO_NOISE, torch.arange(1)
    module = layer(2, 3).eval()
    before = with_logits(module, TWO_BY_THREE)(*rows)
    moved = with_logits(module, TWO_BY_THREE + torch.tensor([3.0, 0.0, 0.0]))(*rows)
    torch.testing.assert_close(moved.specific, before.specific)
    torch.testing.assert_close(moved.shared, before.shared)
    assert ((moved.shares > 0) == (before.shares > 0)).all()
    assert moved.shares[0, 0, 0] > before.shares[0, 0, 0] + 0.1


def test_negative_logits_are_not_favoured_by_the_mask() -> None:
    """With a multiplicative mask, expert 2, which is not selected at -5, would win."""
    logits = torch.tensor([[-1.0, -5.0, -2.0], [-3.0, -1.0, -2.0]])
    out = with_logits(layer(2, 3), logits).eval()(
        torch.randn(1, 3), torch.zeros(1, 2), torch.tensor([0]), NO_NOISE, torch.arange(1)
    )
    assert out.shares[0, 0, 1] == 0
    assert out.shares[0, 0].tolist() == pytest.approx([0.731059, 0.0, 0.268941], abs=1e-6)


def test_selecting_all_experts_is_dense_mmoe() -> None:
    torch.manual_seed(0)
    module = layer(3, 4, top_specific=4).eval()
    z, s, own = torch.randn(6, 3), torch.randn(6, 2), torch.tensor([0, 1, 2, 0, 1, 2])
    gates = module.gates(torch.cat([z, s], 1)).unflatten(1, (3, 4))[torch.arange(6), own].softmax(-1)
    dense = torch.einsum("be,ebh->bh", gates, module.experts(z))
    torch.testing.assert_close(module(z, s, own, NO_NOISE, torch.arange(6)).hidden[0], dense)


@pytest.mark.parametrize("in_mixture", [False, True])
def test_noise_affects_the_selection_and_optionally_the_mixture(in_mixture: bool) -> None:
    """Noise far above the logits changes the selection; shares use clean logits unless `noise_in_mixture`."""
    torch.manual_seed(0)
    module = with_logits(layer(2, 3, noise_in_mixture=in_mixture), TWO_BY_THREE).train()
    out = module(
        torch.randn(200, 3),
        torch.zeros(200, 2),
        torch.zeros(200, dtype=torch.long),
        torch.tensor(10.0),
        torch.arange(200),
    )
    chosen = out.shares[0] > 0
    assert all(0 < share < 1 for share in chosen.float().mean(0).tolist())
    clean = TWO_BY_THREE[0].expand(200, 3).masked_fill(~chosen, -math.inf).softmax(-1)
    assert torch.allclose(clean, out.shares[0]) is not in_mixture


def test_without_noise_training_is_deterministic() -> None:
    module = layer(2, 3).train()
    rows = torch.randn(5, 3), torch.randn(5, 2), torch.tensor([0, 1, 0, 1, 0]), NO_NOISE, torch.arange(5)
    assert torch.equal(module(*rows).hidden, module(*rows).hidden)


def test_an_unselected_expert_gets_a_gradient_of_exactly_zero() -> None:
    module = with_logits(layer(2, 3), TWO_BY_THREE).train()
    out = module(torch.randn(4, 3), torch.zeros(4, 2), torch.zeros(4, dtype=torch.long), NO_NOISE, torch.arange(4))
    out.hidden.square().sum().backward()
    (linear,) = module.experts.layers
    assert (linear.weight.grad[1] == 0).all() and (linear.bias.grad[1] == 0).all()
    assert linear.weight.grad[0].abs().sum() > 0 and linear.weight.grad[2].abs().sum() > 0
    assert (module.gates.bias.grad.view(2, 3)[:, 1] == 0).all(), "its gate gets none from the main loss"
    assert (module.gates.bias.grad.view(2, 3)[1] == 0).all(), "the gate of the other scenario gets none"


def test_the_penalty_makes_selected_experts_more_specific() -> None:
    """A gradient step on L_sp increases the selected expert's share in its own scenario."""
    module = with_logits(layer(2, 3), TWO_BY_THREE).train()
    out = module(torch.randn(4, 3), torch.zeros(4, 2), torch.zeros(4, dtype=torch.long), NO_NOISE, torch.arange(4))
    out.mean_divergences(context([[0]] * 4))[0].backward()
    gradient = module.gates.bias.grad.view(2, 3)
    assert gradient[0, 0] < 0 < gradient[1, 0]
    assert (gradient[:, 1:] == 0).all()


@pytest.mark.parametrize("shape", [(7, 5), (3, 7, 5)])
def test_experts_on_their_own_rows_give_the_same_result_as_all_experts_on_all_rows(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    experts, z = GroupedMLP(expert_names(4), 5, [6, 2]), torch.randn(shape, requires_grad=True)
    selected = torch.rand(3, 7, 4) < 0.4
    selected[..., 0] = True
    selected[:, :, 3] = False  # an expert without rows
    shares = torch.randn(3, 7, 4).masked_fill(~selected, -math.inf).softmax(-1)
    results = []
    for out in (mixture(experts, z, shares), sparse_mixture(experts, z, shares, selected)):
        results.append([out, *torch.autograd.grad(out.square().sum(), [z, *experts.parameters()])])
    for dense, sparse in zip(*results, strict=True):
        torch.testing.assert_close(dense, sparse)


def test_the_noise_falls_only_in_training_and_its_step_is_saved() -> None:
    module = trunk("aesm", 6, noise=0.8, noise_steps=4)
    x, rows = torch.randn(5, 6), context(SCENARIOS)
    module.train()
    seen = [module(x, rows).diagnostics["noise"].item() for _ in range(3)]
    module.eval()
    module(x, rows)
    other = trunk("aesm", 6, noise=0.8, noise_steps=4).train()
    other.load_state_dict(module.state_dict())
    seen += [other(x, rows).diagnostics["noise"].item() for _ in range(3)]
    assert seen == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0, 0.0])
    assert trunk("aesm", 6, noise=0.8, noise_steps=None)(x, rows).diagnostics["noise"].item() == pytest.approx(0.8)


def test_the_number_of_gates_is_the_sum_of_the_levels_not_the_product() -> None:
    inputs = ModelInputs((), (), 0, (names("tab", 5), names("user", 4)), TASKS, ("tab", "user"))
    module = AESMTrunk(inputs, AESMConfig(kind="aesm", experts=2, hidden=[3]), 6)
    assert [block.gates.out_features for block in module.scenario_layers] == [5 * 2, 4 * 2]
    assert [block.gates.out_features for block in module.task_layers] == [3 * 2]
    # The gates of the first level do not read the second level.
    first = module.eval()(torch.ones(2, 6), context([[1, 0], [1, 3]])).experts["tab 1"][0]
    torch.testing.assert_close(first[0], first[1])


def test_penalty_is_weighted_and_per_layer() -> None:
    settings = {"noise": 0.0, "specific_weight": 0.5, "shared_weight": 2.0}
    module = AESMTrunk(INPUTS, AESMConfig(kind="aesm", experts=3, hidden=[4], **settings), 6)  # type: ignore[arg-type]
    out = module(torch.randn(5, 6), context(SCENARIOS))
    reported = {name: value.item() for name, value in out.diagnostics.items()}
    specific = sum(value for name, value in reported.items() if name.endswith("specific"))
    shared = sum(value for name, value in reported.items() if name.endswith("shared"))
    assert out.penalty.item() == pytest.approx(0.5 * specific + 2.0 * shared, rel=1e-5)
    assert len(reported) == 1 + 2 * 3


def test_a_single_gate_mixes_all_experts() -> None:
    """All divergences are zero there: a selection would always return the first experts."""
    torch.manual_seed(0)
    module = layer(1, 4).eval()
    out = module(torch.randn(5, 3), torch.zeros(5, 2), torch.zeros(5, dtype=torch.long), NO_NOISE, torch.arange(5))
    assert (out.shares > 0).all()
    assert out.mean_divergences(context([[0]] * 5)).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
