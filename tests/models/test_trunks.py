"""Properties of all trunks, with all bottoms."""

from collections import Counter
from itertools import product

import pytest
import torch
from torch import Tensor

from models.build import DenseModel
from models.inputs import Embedded
from models.losses import task_losses
from models.trunks.base import Trunk
from tests.models.parts import BOTTOMS, INPUTS, SCENARIOS, SMALL, TASKS, context, dense, embedded, trunk


def deterministic(kind: str, in_dim: int = 6, **settings: object) -> Trunk:
    """A trunk in evaluation mode: without noise, drawn labels and batch moments."""
    torch.manual_seed(0)
    return trunk(kind, in_dim, **settings).eval()


def all_losses(model: DenseModel, labels: Tensor) -> Tensor:
    predictions, output = model(embedded(), context(SCENARIOS))
    losses = task_losses(predictions, labels, torch.ones(5), torch.tensor(5.0)).sum()
    return losses if output.penalty is None else losses + output.penalty


@pytest.mark.parametrize("kind", SMALL)
def test_one_representation_equals_one_per_task(kind: str) -> None:
    module = deterministic(kind)
    x = torch.randn(5, 6)
    shared = module(x, context(SCENARIOS))
    assert shared.hidden.shape == (3, 5, module.out_dim)
    separate = module(x.expand(3, 5, 6), context(SCENARIOS))
    torch.testing.assert_close(separate.hidden, shared.hidden)
    if shared.logits is not None:
        torch.testing.assert_close(separate.logits, shared.logits)


@pytest.mark.parametrize("kind", SMALL)
def test_the_scenario_changes_the_result(kind: str) -> None:
    module = deterministic(kind)
    for parameter in module.parameters():  # scenarios may have the same initial weights
        torch.nn.init.normal_(parameter)
    x = torch.randn(5, 6)
    other = module(x, context(list(reversed(SCENARIOS)))).hidden
    assert not torch.allclose(module(x, context(SCENARIOS)).hidden, other)


@pytest.mark.parametrize("kind", SMALL)
def test_a_row_does_not_depend_on_the_others(kind: str) -> None:
    module = deterministic(kind)
    x = torch.randn(5, 6)
    together = module(x, context(SCENARIOS)).hidden
    alone = torch.cat([module(x[[i]], context(SCENARIOS[i : i + 1])).hidden for i in range(5)], dim=1)
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("kind", SMALL)
def test_the_only_row_of_a_scenario_trains_its_representation(kind: str) -> None:
    """Five rows of five scenarios, in training."""
    torch.manual_seed(0)
    module, x = trunk(kind, 6, hidden=[64]).train(), torch.randn(5, 6, requires_grad=True)
    module(x, context(SCENARIOS)).hidden.square().sum().backward()
    assert x.grad is not None and (x.grad.norm(dim=1) > 1e-3).all()


@pytest.mark.parametrize(("bottom", "kind"), product(BOTTOMS, SMALL))
def test_every_parameter_gets_a_gradient_from_a_batch_of_one_scenario(bottom: str, kind: str) -> None:
    """DDP waits for all gradients, including those of experts and towers that no row uses."""
    torch.manual_seed(0)
    model = dense(bottom, kind)
    assert isinstance(model, DenseModel)
    predictions, output = model(embedded(), context([[0, 0]] * 5))
    losses = task_losses(predictions, torch.zeros(5, 3), torch.ones(5), torch.tensor(5.0)).sum()
    (losses if output.penalty is None else losses + output.penalty).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(("bottom", "kind"), product(BOTTOMS, SMALL))
def test_padding_in_a_sequence_has_no_effect(bottom: str, kind: str) -> None:
    """A row has the same scores in a batch of longer rows as alone, where its sequence has no padding."""
    torch.manual_seed(0)
    model, batch = dense(bottom, kind).eval(), embedded()
    for parameter in model.bottom.parameters():  # initial attention may be uniform
        torch.nn.init.normal_(parameter, std=0.3)
    lengths = batch.lengths["watched"].tolist()
    for row, length in enumerate(lengths):
        batch.sequences["watched"][row, length:] = 0.0  # as in the output of the embedding
    together = model(batch, context(SCENARIOS))[0].scores()
    for row, length in enumerate(lengths):
        alone = Embedded(
            features={name: value[[row]] for name, value in batch.features.items()},
            sequences={"watched": batch.sequences["watched"][[row], : max(length, 1)]},
            lengths={"watched": batch.lengths["watched"][[row]]},
            numerics=batch.numerics[[row]],
        )
        scores = model(alone, context(SCENARIOS[row : row + 1]))[0].scores()
        torch.testing.assert_close(scores, together[[row]])
    assert together.isfinite().all()


@pytest.mark.parametrize("kind", SMALL)
def test_a_row_of_weight_zero_has_no_effect(kind: str) -> None:
    """It affects neither losses and penalties nor values that a trunk computes over rows: gradients are the same as
    without the row."""
    gradients = []
    for keep in (5, 4):
        torch.manual_seed(0)
        module = trunk(kind, 6)
        for parameter in module.parameters():
            torch.nn.init.uniform_(parameter, -0.5, 0.5)
        module.train()
        x = torch.randn(5, 6)[:keep]
        rows = context(SCENARIOS[:keep], [1.0, 1.0, 1.0, 1.0, 0.0][:keep])
        output = module(x, rows)
        loss = (output.hidden.square().sum((0, 2)) * rows.weights).sum()
        (loss if output.penalty is None else loss + output.penalty).backward()
        gradients.append([p.grad for p in module.parameters()])
    for with_padding, without in zip(*gradients, strict=True):
        torch.testing.assert_close(with_padding, without)


@pytest.mark.parametrize("kind", SMALL)
def test_each_tower_of_the_head_is_computed_once(kind: str) -> None:
    model, computed = dense("concat", kind).train(), Counter[str]()
    for name, tower in model.head.towers.items():
        tower.register_forward_hook(lambda *_, name=name: computed.update([name]))
    model(embedded(), context(SCENARIOS))
    assert computed == {task.name: 1 for task in TASKS}


@pytest.mark.parametrize("kind", SMALL)
def test_shares_of_experts_add_up_to_one(kind: str) -> None:
    module = deterministic(kind)
    output = module(torch.randn(5, 6), context(SCENARIOS))
    assert bool(output.experts) is module.has_experts
    for shares in output.experts.values():
        assert shares.shape[0] in (1, len(TASKS)) and shares.shape[1] == 5 and not shares.requires_grad
        torch.testing.assert_close(shares.sum(-1), torch.ones(shares.shape[:2]))


@pytest.mark.parametrize("kind", SMALL)
def test_a_trunk_learns_on_a_batch(kind: str) -> None:
    """The labels depend on the scenario: every trunk must distinguish scenarios and tasks."""
    torch.manual_seed(0)
    model = dense("concat", kind)
    batch, labels = embedded(), torch.tensor([[1.0, 1, 2], [0, 0, -1], [1, 0, 1], [0, 0, 0], [1, 1, 3]])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(200):
        predictions, output = model(batch, context(SCENARIOS))
        loss = task_losses(predictions, labels, torch.ones(5), torch.tensor(5.0)).sum()
        losses.append(loss.item())
        optimizer.zero_grad()
        (loss if output.penalty is None else loss + output.penalty).backward()
        optimizer.step()
    assert losses[-1] < 0.25 * losses[0], losses[::40]


def test_names_of_diagnostics_are_known_beforehand() -> None:
    for kind in SMALL:
        module = trunk(kind, 6)
        assert tuple(module(torch.randn(5, 6), context(SCENARIOS)).diagnostics) == module.diagnostics
    assert trunk("aesm", 6, INPUTS).diagnostics[:3] == ("noise", "kl/tab 1/specific", "kl/tab 1/shared")


@pytest.mark.parametrize(("bottom", "kind"), product(BOTTOMS, SMALL))
def test_bf16_stays_near_fp32(bottom: str, kind: str) -> None:
    torch.manual_seed(0)
    model, batch = dense(bottom, kind).eval(), embedded()
    exact = model(batch, context(SCENARIOS))[0].scores()
    with torch.autocast("cpu", torch.bfloat16):
        predictions, _ = model(batch, context(SCENARIOS))
    torch.testing.assert_close(predictions.scores(), exact, atol=0.05, rtol=0.05)
    predictions.scores().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
