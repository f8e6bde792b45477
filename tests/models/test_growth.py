"""A trained model taken over by one with another task and another scenario value."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.build import DenseModel
from models.config import ObjectiveConfig
from models.growth import Carried, carry_over, state_labels
from models.inputs import ModelInputs, Task
from models.labels import axis_labels, combined, label
from models.objective import Objective
from models.trunks.base import GrowthAxis
from tests.models.parts import BOTTOMS, INPUTS, SMALL, TASKS, context, dense, embedded

# What is new stands in the middle, so that what is old moves.
OLD_TASKS = (Task("click", "binary"), Task("buy", "binary", after=0))
NEW_TASKS = (OLD_TASKS[0], Task("like", "binary", after=0), OLD_TASKS[1])
USERS = ("user=new", "user=old")
OLD_TABS, NEW_TABS = ("tab=1", "tab=other"), ("tab=1", "tab=0", "tab=other")
OLD = replace(INPUTS, tasks=OLD_TASKS, scenarios=(OLD_TABS, USERS))
NEW = replace(INPUTS, tasks=NEW_TASKS, scenarios=(NEW_TABS, USERS))
GROWN = {
    "task": replace(OLD, tasks=NEW_TASKS),
    "scenario": replace(OLD, scenarios=(NEW_TABS, USERS)),
    "task and scenario": NEW,
}

FIRST_NUMBER = 1000  # above whatever a model starts from


def build(bottom: str, kind: str, inputs: ModelInputs, seed: int = 0, **settings: Any) -> DenseModel:
    torch.manual_seed(seed)
    return dense(bottom, kind, inputs, **settings).eval()


def numbered(model: DenseModel) -> DenseModel:
    """With every element a number of its own."""
    first = FIRST_NUMBER
    for tensor in model.state_dict().values():
        tensor.copy_(torch.arange(first, first + tensor.numel()).view_as(tensor))
        first += tensor.numel()
    return model


def trained(model: DenseModel) -> DenseModel:
    """With every element off its starting point."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(-0.5, 0.5).add_(1.0 if name.endswith("variance") else 0.0)
    return model


def take_over(old: nn.Module, new: nn.Module) -> Carried:
    return carry_over(old.state_dict(), axis_labels(old), new.state_dict(), axis_labels(new))


def elements(model: DenseModel) -> dict[tuple[str | int, ...], float]:
    """Every number by the name of its tensor and, an axis, its label or its index."""
    labels = axis_labels(model)
    found: dict[tuple[str | int, ...], float] = {}
    for name, tensor in model.state_dict().items():
        axes = [labels.get(name, {}).get(axis, range(size)) for axis, size in enumerate(tensor.shape)]
        found |= zip(product([name], *axes), tensor.flatten().tolist(), strict=True)
    return found


@pytest.mark.parametrize(("bottom", "kind"), product(BOTTOMS, SMALL))
def test_no_axis_of_tasks_or_scenarios_is_without_labels(bottom: str, kind: str) -> None:
    """An axis grows with tasks and scenarios where its labels name one, and nowhere else."""
    every_level = replace(NEW, scenarios=(NEW_TABS, ("user=new", "user=back", "user=old")))
    old, new = build(bottom, kind, OLD), build(bottom, kind, every_level)
    tensors, labels = new.state_dict(), axis_labels(new)
    for name, tensor in old.state_dict().items():
        sizes = enumerate(zip(tensor.shape, tensors[name].shape, strict=True))
        assert {axis for axis, (before, after) in sizes if before != after} == {
            axis
            for axis, names in labels.get(name, {}).items()
            if not all(name.startswith("expert ") for name in names)
        }, name


@pytest.mark.parametrize(("bottom", "kind"), product(BOTTOMS, SMALL))
def test_what_is_old_is_found_once_by_its_labels_and_what_is_new_is_as_built(bottom: str, kind: str) -> None:
    old, fresh, new = numbered(build(bottom, kind, OLD)), build(bottom, kind, NEW, 1), build(bottom, kind, NEW, 1)
    carried = take_over(old, new)
    assert elements(new) == elements(fresh) | elements(old)
    before, after = old.state_dict(), new.state_dict()
    assert {*carried.kept, *carried.grown} == set(before)
    assert set(carried.new) == set(after) - set(before)
    assert set(carried.grown) == {name for name in before if before[name].shape != after[name].shape}
    added = {part for names in carried.grown.values() for name in names for part in name.split("|")}
    assert any("like" in name for name in (*carried.new, *added)), "the new task"
    assert any("tab=0" in name for name in added), "the new scenario"


@pytest.mark.parametrize(
    ("kind", "name", "places"),
    [
        # Tasks by tabs by users: click is the first of two, then of three; `other` the second of two, then the third.
        ("parallel_dnn", "networks.layers.0.weight", {0: [0, 1, 4, 5, 12, 13, 16, 17]}),
        ("star", "scenario_star.layers.0.weight", {0: [0, 1, 4, 5]}),
        ("star", "norm.variance", {0: [0, 1, 4, 5]}),
        ("star", "auxiliary.1.weight", {0: [0, 2]}),
        ("hmoe", "models.buy.mixing.weight", {0: [0, 1, 4, 5], 2: [0, 1, 4, 5]}),
        ("cross_stitch", "stitches.0", {0: [0, 2], 1: [0, 2]}),
        # Two experts a tab; two a task, and one that is shared behind them.
        ("ple", "scenario_layers.0.specific.layers.0.bias", {0: [0, 1, 4, 5]}),
        ("ple", "task_levels.0.shared_gate.weight", {0: [0, 1, 4, 5, 6]}),
        # Four experts a gate.
        ("aesm", "scenario_layers.0.gates.bias", {0: [0, 1, 2, 3, 8, 9, 10, 11]}),
        ("aesm", "task_layers.1.gates.weight", {0: [0, 1, 2, 3, 8, 9, 10, 11]}),
        ("aesm", "step", {}),
    ],
)
def test_places_by_hand(kind: str, name: str, places: dict[int, list[int]]) -> None:
    settings = {"ple": {"shared": 1}, "aesm": {"experts": 4}}.get(kind, {})
    old, new = numbered(build("concat", kind, OLD, **settings)), build("concat", kind, NEW, **settings)
    take_over(old, new)
    found = new.trunk.state_dict()[name]
    for axis, indices in places.items():
        found = found.index_select(axis, torch.tensor(indices))
    assert torch.equal(found, old.trunk.state_dict()[name])


def scores_before_and_after(
    bottom: str, kind: str, growth: str, **settings: Any
) -> tuple[Tensor, Tensor, frozenset[GrowthAxis]]:
    """Predictions of the old tasks for rows of old scenarios, and growths that the trunk says will not move them."""
    inputs = GROWN[growth]
    torch.manual_seed(2)
    old, new = trained(dense(bottom, kind, OLD, **settings)).eval(), dense(bottom, kind, inputs, **settings).eval()
    take_over(old, new)
    rows, scenarios = embedded(), [[0, 1], [1, 0], [1, 1], [0, 0], [1, 1]]
    tabs = [inputs.scenarios[0].index(tab) for tab in OLD_TABS]
    tasks = [inputs.task_names.index(name) for name in OLD.task_names]
    with torch.no_grad():
        before = old(rows, context(scenarios))[0].scores()
        after = new(rows, context([[tabs[tab], user] for tab, user in scenarios]))[0].scores()
    return before, after[:, tasks], old.trunk.keeps_predictions


@pytest.mark.parametrize(("bottom", "kind", "growth"), product(["concat", "dtrn"], SMALL, GROWN))
def test_old_predictions_stay_where_old_does_not_read_new(bottom: str, kind: str, growth: str) -> None:
    """They move where the trunk mixes what is old with what is new, which every trunk says of itself."""
    before, after, keeps = scores_before_and_after(bottom, kind, growth)
    stays = set(growth.split(" and ")) <= keeps
    assert torch.allclose(after, before, rtol=1e-4, atol=1e-6) is stays


def test_ple_of_one_level_has_no_shared_stream_through_which_a_new_task_would_reach_the_others() -> None:
    before, after, _ = scores_before_and_after("concat", "ple", "task and scenario", levels=1)
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (NEW, replace(NEW, scenarios=OLD.scenarios), r"trunk\.scenario\.levels\.0\.weight: .* nothing for tab=0"),
        (NEW, replace(NEW, tasks=OLD_TASKS), r"trunk\.gates\.weight: .* nothing for like"),
        (replace(INPUTS, numerics=2), INPUTS, r"trunk\.experts\.layers\.0\.weight: axis 1 has 32 .* 31 in the new"),
    ],
)
def test_a_model_cannot_shrink_and_nothing_is_changed(old: ModelInputs, new: ModelInputs, said: str) -> None:
    one, other = build("concat", "mmoe", old), build("concat", "mmoe", new, 1)
    before = deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=said):
        take_over(one, other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_a_tensor_cannot_go_nor_can_what_its_axes_stand_for() -> None:
    tensor = {"weight": torch.zeros(2)}
    with pytest.raises(ValueError, match="bias: the new model has no such tensor"):
        carry_over({**tensor, "bias": torch.zeros(1)}, {}, tensor, {})
    with pytest.raises(ValueError, match="weight: .* do not stand for the same"):
        carry_over(tensor, {}, tensor, {"weight": {0: ("click", "buy")}})
    with pytest.raises(ValueError, match="weight: .* do not stand for the same"):
        carry_over(tensor, {}, {"weight": torch.zeros(2, 1)}, {})


def test_scenarios_that_only_change_places_are_kept() -> None:
    """By name: `other` is the last index, whatever stands before it."""
    old, new = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.zeros(2)}
    carried = carry_over(old, {"w": {0: ("tab=1", "tab=0")}}, new, {"w": {0: ("tab=0", "tab=1")}})
    assert new["w"].tolist() == [2.0, 1.0]
    assert carried == Carried(kept=("w",), grown={}, new=())


def adam(model: DenseModel, steps: int) -> dict[str, Tensor]:
    """State of an optimizer after so many steps, as PARAMETER.KIND."""
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        torch.stack([parameter.square().sum() for parameter in model.parameters()]).sum().backward()
        optimizer.step()
    return {
        f"{name}.{kind}": value
        for name, parameter in model.named_parameters()
        for kind, value in optimizer.state[parameter].items()
    }


def test_moments_of_an_optimizer_go_where_their_parameters_go() -> None:
    old, new = build("concat", "mmoe", OLD), build("concat", "mmoe", NEW, 1)
    one, other = adam(old, 3), adam(new, 1)
    fresh = deepcopy(other)

    def labels(state: Mapping[str, Tensor], model: DenseModel) -> Mapping[str, Mapping[int, tuple[str, ...]]]:
        return state_labels(state, model.state_dict(), axis_labels(model))

    carried = carry_over(one, labels(one, old), other, labels(other, new))
    moment, step = "trunk.gates.weight.exp_avg_sq", "trunk.gates.weight.step"
    assert torch.equal(other[moment][[0, 2]], one[moment])
    assert torch.equal(other[moment][1], fresh[moment][1])
    assert carried.grown[moment] == ("like",)
    assert other[step] == 3 and step in carried.kept
    assert other["head.towers.like.1.bias.step"] == 1 and "head.towers.like.1.bias.step" in carried.new


def test_labels_are_as_many_as_positions_and_differ() -> None:
    layer = nn.Linear(3, 2)
    for names in (["click"], ["click", "buy", "like"], ["click", "click"]):
        with pytest.raises(ValueError, match="weight: axis 0 has 2 positions"):
            label(layer, "weight", 0, names)
    assert axis_labels(layer) == {}


def test_labels_stay_when_a_model_is_moved_or_copied() -> None:
    model = build("concat", "star", OLD)
    labels = axis_labels(model)
    assert labels["trunk.norm.variance"] == {0: combined(OLD_TABS, USERS, separator="/")}
    assert axis_labels(deepcopy(model).double()) == labels


def test_learned_weights_of_tasks_are_labelled() -> None:
    objective = Objective(TASKS, ObjectiveConfig(weighting="uncertainty"))
    assert axis_labels(objective) == {"log_variances": {0: ("click", "buy", "value")}}
    assert axis_labels(Objective(TASKS, ObjectiveConfig())) == {}


def test_combinations_by_hand() -> None:
    assert combined(["click", "buy"], ["tab=1", "tab=0"]) == ("click|tab=1", "click|tab=0", "buy|tab=1", "buy|tab=0")
