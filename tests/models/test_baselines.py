"""The baselines: values calculated by hand, and the property that gives each its name."""

import torch
from torch import nn

from models.inputs import ModelInputs, Task
from models.labels import expert_names
from models.layers.grouped import GroupedMLP, Groups
from models.layers.scenario import FinestScenario
from tests.models.parts import SCENARIOS, TASKS, context, names, trunk


def test_the_leaves_of_the_scenario_tree_are_numbered() -> None:
    finest = FinestScenario([names("tab", 3), names("user", 2), names("hour", 4)])
    assert finest.count == 24
    assert [finest.labels[i] for i in (0, 7, 23)] == [
        "tab=0/user=0/hour=0",
        "tab=0/user=1/hour=3",
        "tab=2/user=1/hour=3",
    ]
    assert finest(torch.tensor([[0, 0, 0], [0, 1, 3], [2, 1, 3]])).tolist() == [0, 7, 23]


def test_grouped_networks_give_the_same_result_as_separate_networks() -> None:
    torch.manual_seed(0)
    grouped = GroupedMLP(expert_names(3), 4, [5, 2])
    networks = []
    for g in range(3):
        layers: list[nn.Module] = []
        for layer in grouped.layers:
            linear = nn.Linear(*layer.weight.shape[1:])
            linear.weight.data.copy_(layer.weight[g].T)
            linear.bias.data.copy_(layer.bias[g])
            layers += [linear, nn.ReLU()]
        networks.append(nn.Sequential(*layers))
    x, index = torch.randn(6, 4), torch.tensor([2, 0, 2, 2, 0, 2])  # group 1 has no rows
    groups = Groups.of(index, 3)
    assert groups.sizes == [2, 0, 4]
    out = groups.scatter(grouped.ragged(groups.gather(x), groups.sizes))
    torch.testing.assert_close(out, torch.stack([networks[g](row) for g, row in zip(index, x, strict=True)]))
    torch.testing.assert_close(grouped(x), torch.stack([network(x) for network in networks]))
    out.sum().backward()
    assert all((p.grad[1] == 0).all() and p.grad.abs().sum() > 0 for p in grouped.parameters())


def test_mmoe_by_hand() -> None:
    """Equal logits average two experts; other logits weight them."""
    torch.manual_seed(0)
    inputs = ModelInputs((), (), 0, (names("tab", 1),), TASKS, ("tab",))
    module = trunk("mmoe", 2, inputs, experts=2, hidden=[3], scenario_dim=1)
    x, rows = torch.randn(4, 2), context([[0]] * 4)
    z = module.scenario.append_to(x, rows.scenarios)
    one, two = module.experts(z)
    nn.init.zeros_(module.gates.weight)
    torch.testing.assert_close(module(x, rows).hidden, ((one + two) / 2).expand(3, 4, 3))
    nn.init.normal_(module.gates.weight[1])
    weights = (z @ module.gates.weight[1]).softmax(-1)
    torch.testing.assert_close(module(x, rows).hidden[1], weights[:, :1] * one + weights[:, 1:] * two)


def test_cross_stitch_by_hand() -> None:
    torch.manual_seed(0)
    inputs = ModelInputs((), (), 0, (names("tab", 1),), (TASKS[0], Task("like", "binary")), ("tab",))
    module = trunk("cross_stitch", 2, inputs, hidden=[3], scenario_dim=1)
    torch.testing.assert_close(module.stitches[0].detach(), torch.tensor([[0.9, 0.1], [0.1, 0.9]]))
    x, rows = torch.randn(4, 2), context([[0]] * 4)
    own = module.layers[0](module.scenario.append_to(x, rows.scenarios)).relu()
    module.stitches[0].data.copy_(torch.tensor([[1.0, 0.5], [0.0, 2.0]]))
    hidden = module(x, rows).hidden
    torch.testing.assert_close(hidden[0], own[0] + 0.5 * own[1])
    torch.testing.assert_close(hidden[1], 2 * own[1])


def test_parallel_networks_share_nothing() -> None:
    module = trunk("parallel_dnn", 6)
    module(torch.randn(5, 6), context(SCENARIOS)).hidden[1, 1].sum().backward()  # task 1, scenario (2, 0)
    used = module.networks.layers[0].weight.grad.flatten(1).abs().sum(1).nonzero().flatten().tolist()
    assert used == [1 * 6 + 2 * 2 + 0]


def test_hmoe_uses_other_scenarios_without_training_them() -> None:
    torch.manual_seed(0)
    module = trunk("hmoe", 6)
    x, rows = torch.randn(1, 6), context([[1, 0]])  # finest scenario 2 of 6
    hidden = module(x, rows).hidden
    hidden[0].sum().backward()
    first, other = module.models["click"], module.models["buy"]
    for name in ("towers.layers.0.weight", "gates.weight", "mixing.weight"):
        gradient = first.get_parameter(name).grad
        assert gradient.flatten(1).abs().sum(1).nonzero().flatten().tolist() == [2], name
        assert other.get_parameter(name).grad is None or (other.get_parameter(name).grad == 0).all()
    with torch.no_grad():  # calculated with the formula
        outputs = first.experts(x)
        mixed = torch.einsum("jbe,ebh->jbh", first.gates(x).softmax(-1), outputs)
        towers = first.towers(mixed)[:, 0]
        weights = (x @ first.mixing.weight[2]).softmax(-1)[0]
    torch.testing.assert_close(hidden[0, 0], weights @ towers)


def test_ple_by_hand() -> None:
    """One level: its gate mixes the task's specific and the shared experts, on the output of the scenario layer."""
    torch.manual_seed(0)
    inputs = ModelInputs((), (), 0, (names("tab", 2),), TASKS, ("tab",))
    module = trunk("ple", 3, inputs, specific=1, shared=2, levels=1, hidden=[4])
    x, rows = torch.randn(3, 3), context([[1], [0], [1]])
    (scenario,) = module.scenario_layers
    row = x[:1]  # of scenario 1
    experts = torch.cat([scenario.specific(row)[1:2], scenario.shared(row)])[:, 0]
    z = (row @ scenario.gates.weight[1]).softmax(-1) @ experts
    (level,) = module.task_levels
    assert level.shared_gate is None
    experts = torch.cat([level.specific["value"](z), level.shared(z)])[:, 0]
    expected = (z @ level.gates.weight[2]).softmax(-1) @ experts
    torch.testing.assert_close(module(x, rows).hidden[2, 0], expected[0])


def test_ple_experts_of_a_task_are_trained_by_other_tasks_only_through_the_shared_stream() -> None:
    torch.manual_seed(0)
    module = trunk("ple", 6, levels=1)
    module(torch.randn(5, 6), context(SCENARIOS)).hidden[0].sum().backward()
    (level,) = module.task_levels
    assert level.specific["buy"].layers[0].weight.grad.abs().sum() == 0
    assert level.specific["click"].layers[0].weight.grad.abs().sum() > 0
    deep = trunk("ple", 6, levels=2)
    deep(torch.randn(5, 6), context(SCENARIOS)).hidden[0].sum().backward()
    first = deep.task_levels[0]
    assert first.shared_gate.weight.grad.abs().sum() > 0
    assert first.specific["buy"].layers[0].weight.grad.abs().sum() > 0, "through the shared stream"


def test_star_starts_from_the_shared_weights_and_multiplies() -> None:
    torch.manual_seed(0)
    module = trunk("star", 6, hidden=[8]).eval()
    layer = module.scenario_star.layers[0]
    x = torch.randn(2, 6)
    both = context([[0, 0], [2, 1]])
    same = module.scenario_star.ragged(x, [1, 0, 0, 0, 0, 1])
    torch.testing.assert_close(same, (x @ layer.shared.weight.T + layer.shared.bias).relu())
    with torch.no_grad():
        layer.weight[5] = 2.0
        layer.bias[5] = 1.0
    expected = (x[1] @ (2 * layer.shared.weight.T) + layer.shared.bias + 1).relu()
    torch.testing.assert_close(module.scenario_star.ragged(x, [1, 0, 0, 0, 0, 1])[1], expected)
    out = module(x, both)
    assert out.logits is not None
    inputs = module.scenario.append_to(x, both.scenarios)
    torch.testing.assert_close(out.logits, module.auxiliary(inputs).T)


def test_esmm_is_towers_on_the_shared_embedding() -> None:
    module = trunk("shared_bottom", 6, hidden=[], scenario_dim=2)
    x = torch.randn(5, 6)
    hidden = module(x, context(SCENARIOS)).hidden
    assert module.out_dim == 6 + 2 * 2
    assert torch.equal(hidden[0, :, :6], x) and torch.equal(hidden[0], hidden[2])
