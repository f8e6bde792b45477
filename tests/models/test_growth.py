"""Copying a trained model into a model with an additional task and scenario value."""

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from itertools import chain, product
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

# The new task and scenario are in the middle, so that old positions change.
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

FIRST_NUMBER = 1000  # above all initial values of a model


def build(bottom: str, kind: str, inputs: ModelInputs, seed: int = 0, **settings: Any) -> DenseModel:
    torch.manual_seed(seed)
    return dense(bottom, kind, inputs, **settings).eval()


def numbered(model: DenseModel) -> DenseModel:
    """The model with a different number in every element."""
    first = FIRST_NUMBER
    for tensor in model.state_dict().values():
        tensor.copy_(torch.arange(first, first + tensor.numel()).view_as(tensor))
        first += tensor.numel()
    return model


def trained(model: DenseModel) -> DenseModel:
    """The model with random values in place of all initial values."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(-0.5, 0.5).add_(1.0 if name.endswith("variance") else 0.0)
    return model


def take_over(old: nn.Module, new: nn.Module) -> Carried:
    return carry_over(old.state_dict(), axis_labels(old), new.state_dict(), axis_labels(new))


def elements(model: DenseModel) -> dict[tuple[str | int, ...], float]:
    """Every number, by the name of its tensor and its label or index on each axis."""
    labels = axis_labels(model)
    found: dict[tuple[str | int, ...], float] = {}
    for name, tensor in model.state_dict().items():
        axes = [labels.get(name, {}).get(axis, range(size)) for axis, size in enumerate(tensor.shape)]
        found |= zip(product([name], *axes), tensor.flatten().tolist(), strict=True)
    return found


@pytest.mark.parametrize(("bottom", "kind"), product(BOTTOMS, SMALL))
def test_no_axis_of_tasks_or_scenarios_is_without_labels(bottom: str, kind: str) -> None:
    """Exactly those axes grow whose labels are tasks or scenarios."""
    every_level = replace(NEW, scenarios=(NEW_TABS, ("user=new", "user=back", "user=old")))
    old, new = build(bottom, kind, OLD), build(bottom, kind, every_level)
    growing = {*every_level.task_names, *chain(*every_level.scenarios)}
    tensors, labels = new.state_dict(), axis_labels(new)
    for name, tensor in old.state_dict().items():
        sizes = enumerate(zip(tensor.shape, tensors[name].shape, strict=True))
        assert {axis for axis, (before, after) in sizes if before != after} == {
            axis
            for axis, positions in labels.get(name, {}).items()
            if growing & {part for position in positions for part in re.split(r"[|/]", position)}
        }, name


@pytest.mark.parametrize(("bottom", "kind"), product(BOTTOMS, SMALL))
def test_old_values_are_copied_by_their_labels_and_new_values_stay_as_built(bottom: str, kind: str) -> None:
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


@pytest.mark.parametrize("kind", SMALL)
def test_counters_of_steps_start_again_when_a_model_grows(kind: str) -> None:
    """Every whole number in the state of a trunk counts steps."""
    trunk = build("concat", kind, NEW).trunk
    assert trunk.restarted == {name for name, value in trunk.state_dict().items() if not value.is_floating_point()}


@pytest.mark.parametrize(
    ("kind", "name", "positions"),
    [
        # Tasks x tabs x users. Click is first of two tasks, then of three; `other` is second of two tabs, then third.
        ("parallel_dnn", "networks.layers.0.weight", {0: [0, 1, 4, 5, 12, 13, 16, 17]}),
        ("star", "scenario_star.layers.0.weight", {0: [0, 1, 4, 5]}),
        ("star", "norm.variance", {0: [0, 1, 4, 5]}),
        ("star", "auxiliary.1.weight", {0: [0, 2]}),
        ("hmoe", "models.buy.mixing.weight", {0: [0, 1, 4, 5], 2: [0, 1, 4, 5]}),
        ("cross_stitch", "stitches.0", {0: [0, 2], 1: [0, 2]}),
        # Two experts per tab. Two experts per task, followed by one shared expert.
        ("ple", "scenario_layers.0.specific.layers.0.bias", {0: [0, 1, 4, 5]}),
        ("ple", "task_levels.0.shared_gate.weight", {0: [0, 1, 4, 5, 6]}),
        # Four experts per gate.
        ("aesm", "scenario_layers.0.gates.bias", {0: [0, 1, 2, 3, 8, 9, 10, 11]}),
        ("aesm", "task_layers.1.gates.weight", {0: [0, 1, 2, 3, 8, 9, 10, 11]}),
        ("aesm", "step", {}),
    ],
)
def test_positions_by_hand(kind: str, name: str, positions: dict[int, list[int]]) -> None:
    settings = {"ple": {"shared": 1}, "aesm": {"experts": 4}}.get(kind, {})
    old, new = numbered(build("concat", kind, OLD, **settings)), build("concat", kind, NEW, **settings)
    take_over(old, new)
    found = new.trunk.state_dict()[name]
    for axis, indices in positions.items():
        found = found.index_select(axis, torch.tensor(indices))
    assert torch.equal(found, old.trunk.state_dict()[name])


def scores_before_and_after(
    bottom: str, kind: str, growth: str, **settings: Any
) -> tuple[Tensor, Tensor, frozenset[GrowthAxis]]:
    """Predictions of old tasks for rows of old scenarios, and the additions that leave them unchanged by the trunk's
    own statement."""
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
def test_old_predictions_stay_the_same_if_old_parts_do_not_read_new_parts(bottom: str, kind: str, growth: str) -> None:
    """They change if the trunk mixes old and new parts; each trunk states this in `keeps_predictions`."""
    before, after, keeps = scores_before_and_after(bottom, kind, growth)
    is_kept = set(growth.split(" and ")) <= keeps
    assert torch.allclose(after, before, rtol=1e-4, atol=1e-6) is is_kept


def test_a_new_task_does_not_affect_other_tasks_in_ple_with_one_level() -> None:
    """The last level has no shared stream."""
    before, after, _ = scores_before_and_after("concat", "ple", "task and scenario", levels=1)
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (NEW, replace(NEW, scenarios=OLD.scenarios), r"trunk\.scenario\.levels\.0\.weight: .* no position for tab=0"),
        (NEW, replace(NEW, tasks=OLD_TASKS), r"trunk\.gates\.weight: .* no position for like"),
        (replace(INPUTS, numerics=2), INPUTS, r"trunk\.experts\.layers\.0\.weight: axis 1 has 32 .* 31 in the new"),
    ],
)
def test_a_model_cannot_shrink_and_nothing_is_changed(old: ModelInputs, new: ModelInputs, message: str) -> None:
    one, other = build("concat", "mmoe", old), build("concat", "mmoe", new, 1)
    before = deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=message):
        take_over(one, other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_a_missing_tensor_and_different_axes_are_refused() -> None:
    tensor = {"weight": torch.zeros(2)}
    with pytest.raises(ValueError, match="bias: the new model has no such tensor"):
        carry_over({**tensor, "bias": torch.zeros(1)}, {}, tensor, {})
    with pytest.raises(ValueError, match="weight: .* do not match"):
        carry_over(tensor, {}, tensor, {"weight": {0: ("click", "buy")}})
    with pytest.raises(ValueError, match="weight: .* do not match"):
        carry_over(tensor, {}, {"weight": torch.zeros(2, 1)}, {})


def test_scenarios_that_only_change_position_are_kept() -> None:
    """They are found by name: `other` is always last, so its index changes."""
    old, new = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.zeros(2)}
    carried = carry_over(old, {"w": {0: ("tab=1", "tab=0")}}, new, {"w": {0: ("tab=0", "tab=1")}})
    assert new["w"].tolist() == [2.0, 1.0]
    assert carried == Carried(kept=("w",), grown={}, new=())


def adam(model: DenseModel, steps: int) -> dict[str, Tensor]:
    """State of an optimizer after `steps` steps, as PARAMETER.KIND."""
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


def test_moments_of_an_optimizer_are_copied_to_the_positions_of_their_parameters() -> None:
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


def test_labels_are_unique_and_one_per_position() -> None:
    layer = nn.Linear(3, 2)
    for names in (["click"], ["click", "buy", "like"], ["click", "click"]):
        with pytest.raises(ValueError, match="weight: axis 0 has 2 positions"):
            label(layer, "weight", 0, names)
    assert axis_labels(layer) == {}


def test_labels_survive_moving_and_copying_a_model() -> None:
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
