"""P(task | after) of the head, for any chains of tasks."""

from dataclasses import replace
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.config import TowersConfig
from models.heads.towers import HeadOutput, TowersHead
from models.inputs import Task
from models.trunks.base import TrunkOutput
from tests.models.parts import INPUTS

Conversion = Literal["product", "direct"]
CONVERSIONS: list[Conversion] = ["product", "direct"]


def predicted(tasks: tuple[Task, ...], conversion: Conversion, logits: Tensor) -> HeadOutput:
    """The predictions of towers whose first unit is a given logit, ``(tasks, batch)``."""
    head = TowersHead(replace(INPUTS, tasks=tasks), TowersConfig(kind="towers", hidden=[], conversion=conversion), 1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
        output: HeadOutput = head(TrunkOutput(torch.zeros(len(tasks), logits.shape[1], 1), logits=logits))
        return output


@st.composite
def chains(draw: st.DrawFn) -> tuple[Task, ...]:
    """Up to six tasks of both kinds, each after any binary task above it or after none."""
    tasks: list[Task] = []
    for number in range(draw(st.integers(1, 6))):
        earlier = [i for i, task in enumerate(tasks) if task.kind == "binary"]
        after = draw(st.none() | st.sampled_from(earlier)) if earlier else None
        tasks.append(Task(f"t{number}", draw(st.sampled_from(["binary", "continuous"])), after))
    return tuple(tasks)


@settings(max_examples=100, deadline=None)
@given(chains(), st.sampled_from(CONVERSIONS), st.integers(0, 2**32 - 1), st.sampled_from([1.0, 5.0, 30.0]))
def test_any_chain(tasks: tuple[Task, ...], conversion: Conversion, seed: int, spread: float) -> None:
    """`product`: the tower's own sigmoid, bit by bit, with P(t) = P(t | a) P(a). `direct`: min(1, P(t) / P(a))."""
    logits = torch.randn(len(tasks), 7, generator=torch.Generator().manual_seed(seed)) * spread
    output = predicted(tasks, conversion, logits)
    scores, conditionals = output.scores().double(), output.conditionals()
    conditional = [(t, task.after) for t, task in enumerate(tasks) if task.kind == "binary" and task.after is not None]
    if not conditional:
        assert conditionals is None
        return
    assert conditionals is not None and conditionals.shape == (7, len(conditional))
    for column, (t, after) in zip(conditionals.T, conditional, strict=True):
        assert after is not None
        if conversion == "product":
            assert torch.equal(column, torch.nn.functional.logsigmoid(logits[t]).exp())
            torch.testing.assert_close(column, torch.sigmoid(logits[t]), rtol=1e-5, atol=0)
            torch.testing.assert_close(column.double() * scores[:, after], scores[:, t], rtol=1e-4, atol=1e-37)
        else:
            exact = torch.sigmoid(logits[t].double()) / torch.sigmoid(logits[after].double())
            torch.testing.assert_close(column.double(), exact.clamp(max=1), rtol=1e-4, atol=0)


def test_a_chain_by_hand() -> None:
    """Logits ln 3 and -ln 4 are 3/4 and 1/5; the third task is given the second one, not the first."""
    tasks = (Task("click", "binary"), Task("buy", "binary", after=0), Task("rate", "binary", after=1))
    logits = torch.tensor([[3.0], [0.25], [1 / 9]]).log()
    product, direct = (predicted(tasks, conversion, logits) for conversion in CONVERSIONS)
    assert product.scores()[0].tolist() == pytest.approx([0.75, 0.15, 0.015])
    assert direct.scores()[0].tolist() == pytest.approx([0.75, 0.2, 0.1])
    for output, expected in ((product, [0.2, 0.1]), (direct, [0.2 / 0.75, 0.5])):
        conditionals = output.conditionals()
        assert conditionals is not None and conditionals[0].tolist() == pytest.approx(expected)


def test_it_is_no_ratio_of_rounded_probabilities() -> None:
    """P(click) and P(buy) are 0 in float32, and P(buy | click) is still the tower's own."""
    tasks = (Task("click", "binary"), Task("buy", "binary", after=0))
    output = predicted(tasks, "product", torch.tensor([[-200.0], [0.25]]))
    conditionals = output.conditionals()
    assert output.scores()[0].tolist() == [0.0, 0.0]
    assert conditionals is not None and conditionals[0].tolist() == pytest.approx([1 / (1 + torch.e**-0.25)])
