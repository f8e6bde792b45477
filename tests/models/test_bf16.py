"""The last layers compute in fp32 under bf16, so that scores keep their order and values are on no grid."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from models.inputs import ModelInputs, Task
from models.layers.mlp import Units
from models.loss_config import LOSSES, LossConfig
from tests.models.parts import BOTTOMS, INPUTS, SMALL, TASKS, context, dense, embedded

ROWS = 4000
EVERY_LOSS = replace(
    INPUTS, tasks=(*TASKS[:2], *(Task(loss, "continuous", after=1, loss=LossConfig(loss=loss)) for loss in LOSSES))
)


def wide(kind: str) -> dict[str, list[int]]:
    """Layers of 64: with the 6 units of the other tests, many rows have equal hidden vectors in bf16."""
    return {name: [64] * len(value) for name, value in SMALL[kind].items() if isinstance(value, list)}


def scores(bottom: str, kind: str, inputs: ModelInputs) -> tuple[Tensor, Tensor]:
    """Scores ``(rows, tasks)`` of one model in fp32 and in bf16; the values of mse and huber are near 10,000."""
    torch.manual_seed(0)
    model, batch = dense(bottom, kind, inputs, **wide(kind)).eval(), embedded(ROWS)
    rows = context(torch.stack([torch.randint(3, (ROWS,)), torch.randint(2, (ROWS,))], dim=1))
    with torch.no_grad():
        for name in {"mse", "huber"} & set(inputs.task_names):
            units = model.head.towers[name][-1]
            assert isinstance(units, Units)
            units.weight.mul_(1000)
            units.bias.fill_(10_000)
        exact = model(batch, rows)[0].scores()
        with torch.autocast("cpu", torch.bfloat16):
            return exact, model(batch, rows)[0].scores()


@pytest.mark.parametrize(("bottom", "kind"), product(BOTTOMS, SMALL))
def test_bf16_has_nearly_as_many_distinct_scores_as_fp32(bottom: str, kind: str) -> None:
    exact, rounded = scores(bottom, kind, EVERY_LOSS)
    for k, name in enumerate(EVERY_LOSS.task_names):
        distinct, expected = len(rounded[:, k].unique()), len(exact[:, k].unique())
        assert distinct > 0.97 * expected > 0.9 * ROWS, (name, distinct, expected)


@pytest.mark.parametrize(("bottom", "kind"), product(BOTTOMS, SMALL))
def test_every_last_layer_computes_in_fp32(bottom: str, kind: str) -> None:
    """Those of the head, and those inside a bottom or a trunk, whose effect on the scores is small at the start."""
    model = dense(bottom, kind)
    outputs: list[Tensor] = []

    def check(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        assert isinstance(layer, Units)
        with torch.autocast("cpu", enabled=False):
            expected = linear(inputs[0].float(), layer.weight, layer.bias)
        assert torch.equal(output, expected)
        outputs.append(output)

    for layer in model.modules():
        if isinstance(layer, Units):
            layer.register_forward_hook(check)
    with torch.autocast("cpu", torch.bfloat16):
        _, trunk = model(embedded(), context([[0, 0]] * 5))
    assert len(outputs) >= len(TASKS) and all(output.dtype == torch.float32 for output in outputs)
    assert trunk.logits is None or trunk.logits.dtype == torch.float32
