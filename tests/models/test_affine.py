"""Linear layers by convolution and by parts: the same numbers and gradients as PyTorch's own."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from models.layers import affine as layers
from models.layers.affine import affine, grouped_affine, ragged_affine


@pytest.fixture(autouse=True)
def always_convolves(monkeypatch: pytest.MonkeyPatch) -> None:
    if not layers.HAS_FAST_CONVOLUTIONS:
        pytest.skip("this processor has no fast convolutions")
    monkeypatch.setattr(layers, "SMALLEST", 1)


def made(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


def with_gradients(out: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
    return [out.detach().float(), *torch.autograd.grad((out.float() * weights).sum(), leaves)]


def assert_same(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, rtol=tolerance, atol=tolerance * float(its.abs().max()))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(32, 24), (2, 16, 24), (33, 24)])
def test_affine_is_linear(shape: tuple[int, ...], relu: bool, precision: str) -> None:
    torch.manual_seed(0)
    x, weight, bias = made(*shape), made(40, 24), made(40)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        ours = with_gradients(affine(x, weight, bias, relu), [x, weight, bias])
        plain = linear(x, weight, bias)
        theirs = with_gradients(plain.relu() if relu else plain, [x, weight, bias])
    assert_same(ours, theirs, 1e-6 if precision == "fp32" else 2e-2)


@pytest.mark.parametrize(("rows", "convolves"), [(32, True), (33, False), (0, False)])
def test_rows_that_fill_the_images_are_convolved(rows: int, convolves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    convolve = layers._convolve
    monkeypatch.setattr(layers, "_convolve", lambda *arguments: calls.append(1) or convolve(*arguments))
    assert affine(made(rows, 24), made(40, 24), None).shape == (rows, 40)
    assert bool(calls) == convolves


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("side_by_side", [False, True])
def test_grouped_affine_is_a_product_a_group(side_by_side: bool, has_bias: bool, precision: str) -> None:
    torch.manual_seed(0)
    x, weight, bias = made(48, 3, 8), made(3, 8, 10), made(3, 10)
    leaves = [x, weight, *([bias] if has_bias else [])]
    inputs = x.transpose(0, 1) if side_by_side else x.transpose(0, 1).contiguous()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        ours = with_gradients(grouped_affine(inputs, weight, bias if has_bias else None, relu=True), leaves)
        plain = torch.einsum("rgi,gio->gro", x, weight) + (bias[:, None] if has_bias else 0)
        theirs = with_gradients(plain.relu(), leaves)
    assert_same(ours, theirs, 1e-6 if precision == "fp32" else 2e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("has_factor", [False, True])
def test_ragged_affine_is_a_product_a_group_and_a_group_without_rows_gets_zeros(
    has_factor: bool, precision: str
) -> None:
    torch.manual_seed(0)
    sizes = [5, 0, 9]
    x, weight, bias, factor = made(14, 8), made(3, 8, 10), made(3, 10), made(10, 8)
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
