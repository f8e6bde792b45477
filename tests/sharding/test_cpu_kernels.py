"""Linear layers as convolutions and group by group: the same numbers and gradients as PyTorch's, also in models."""

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from models.build import DenseModel
from models.layers.mlp import Units
from models.losses import task_losses
from pipeline.sharding import cpu_kernels
from pipeline.sharding.cpu_kernels import affine, grouped_affine, ragged_affine, use_cpu_kernels
from tests.models.parts import BOTTOMS, SCENARIOS, SMALL, context, dense, embedded


@pytest.fixture(autouse=True)
def always_convolves(monkeypatch: pytest.MonkeyPatch) -> None:
    if not cpu_kernels.HAS_FAST_CONVOLUTIONS:
        pytest.skip("this processor has no fast convolutions")
    monkeypatch.setattr(cpu_kernels, "SMALLEST", 1)


def random_leaf(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


def with_gradients(out: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
    return [out.detach().float(), *torch.autograd.grad((out.float() * weights).sum(), leaves)]


def assert_same(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    for value, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(32, 24), (2, 16, 24), (33, 24)])
def test_affine_is_linear(shape: tuple[int, ...], relu: bool, precision: str) -> None:
    torch.manual_seed(0)
    x, weight, bias = random_leaf(*shape), random_leaf(40, 24), random_leaf(40)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        ours = with_gradients(affine(x, weight, bias, relu), [x, weight, bias])
        plain = linear(x, weight, bias)
        theirs = with_gradients(plain.relu() if relu else plain, [x, weight, bias])
    assert_same(ours, theirs, 1e-6 if precision == "fp32" else 2e-2)


@pytest.mark.parametrize(("rows", "convolves"), [(32, True), (33, False), (0, False)])
def test_rows_that_fill_the_images_are_convolved(rows: int, convolves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    convolve = cpu_kernels._convolve
    monkeypatch.setattr(cpu_kernels, "_convolve", lambda *arguments: calls.append(1) or convolve(*arguments))
    assert affine(random_leaf(rows, 24), random_leaf(40, 24), None).shape == (rows, 40)
    assert bool(calls) == convolves


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("side_by_side", [False, True])
def test_grouped_affine_is_one_product_per_group(side_by_side: bool, has_bias: bool, precision: str) -> None:
    torch.manual_seed(0)
    x, weight, bias = random_leaf(48, 3, 8), random_leaf(3, 8, 10), random_leaf(3, 10)
    leaves = [x, weight, *([bias] if has_bias else [])]
    inputs = x.transpose(0, 1) if side_by_side else x.transpose(0, 1).contiguous()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        ours = with_gradients(grouped_affine(inputs, weight, bias if has_bias else None, relu=True), leaves)
        plain = torch.einsum("rgi,gio->gro", x, weight) + (bias[:, None] if has_bias else 0)
        theirs = with_gradients(plain.relu(), leaves)
    assert_same(ours, theirs, 1e-6 if precision == "fp32" else 2e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("has_factor", [False, True])
def test_ragged_affine_is_one_product_per_group_and_a_group_without_rows_gets_zero_gradients(
    has_factor: bool, precision: str
) -> None:
    torch.manual_seed(0)
    sizes = [5, 0, 9]
    x, weight, bias, factor = random_leaf(14, 8), random_leaf(3, 8, 10), random_leaf(3, 10), random_leaf(10, 8)
    leaves = [x, weight, bias, *([factor] if has_factor else [])]
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        ours = with_gradients(
            ragged_affine(x, weight, bias, sizes, relu=True, factor=factor.T if has_factor else None), leaves
        )
        whole = weight * factor.T if has_factor else weight
        parts = [rows @ whole[g] + bias[g] for g, rows in enumerate(x.split(sizes))]
        theirs = with_gradients(torch.cat(parts).relu(), leaves)
    assert_same(ours, theirs, 1e-6 if precision == "fp32" else 2e-2)
    assert not ours[2][1].any() and not ours[3][1].any()


ROWS = 160  # a multiple of the number of images in a convolution, and of the number of rows in SCENARIOS


def results(model: DenseModel) -> list[Tensor]:
    """Scores and the gradients of all parameters in training, on the same rows for every model."""
    torch.manual_seed(1)
    batch, rows = embedded(ROWS), context(SCENARIOS * (ROWS // len(SCENARIOS)))
    predictions, output = model(batch, rows)
    labels = torch.rand(ROWS, len(predictions.tasks)).round()
    loss = task_losses(predictions, labels, rows.weights, rows.weight_total).sum()
    (loss if output.penalty is None else loss + output.penalty).backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    return [predictions.scores().detach(), *(gradient for gradient in gradients if gradient is not None)]


@pytest.mark.parametrize(("bottom", "kind"), product(BOTTOMS, SMALL))
def test_a_model_with_cpu_kernels_computes_the_same(bottom: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal up to rounding: only the order of the sums inside a product differs."""
    calls: list[int] = []
    convolve = cpu_kernels._convolve
    monkeypatch.setattr(cpu_kernels, "_convolve", lambda *arguments: calls.append(1) or convolve(*arguments))
    torch.manual_seed(0)
    plain = dense(bottom, kind)
    fast = dense(bottom, kind)
    use_cpu_kernels(fast)
    fast.load_state_dict(plain.state_dict())
    expected = results(plain)
    assert not calls
    ours = results(fast)
    assert calls and len(ours) == len(expected)
    for value, plain_value in zip(ours, expected, strict=True):
        tolerance = 1e-5 * max(float(plain_value.abs().max()), 1e-3)
        torch.testing.assert_close(value, plain_value, rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize(("bottom", "kind"), product(BOTTOMS, SMALL))
def test_all_layers_but_the_last_ones_get_cpu_kernels_and_no_tensor_changes(bottom: str, kind: str) -> None:
    model = dense(bottom, kind)
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    use_cpu_kernels(model)
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == before
    kinds = {type(layer) for layer in model.modules()}
    assert not kinds & set(cpu_kernels._FASTER) and Units in kinds
