"""The linear layers of a model at the rate of a CPU.

Models are plain PyTorch. `use_cpu_kernels` gives their layers another way to compute the same: names, parameters and
what a layer is called stay, results differ by rounding alone.

On CPUs PyTorch multiplies float32 matrices with MKL, which leaves half of the vector width of AMD's processors unused,
and convolves with oneDNN, which uses all of it. A linear layer is a convolution of one pixel: rows are taken as images
whose channels lie last, as they do anyway, so that nothing is copied. docs/performance.md has the figures.
"""

import platform
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from models.layers.grouped import GroupedLinear
from models.trunks.star import StarLinear

IMAGES = 16
"""Fewer images than these PyTorch leaves to MKL where it runs on one thread."""
SMALLEST = 2**22
"""Multiplications from which a convolution is worth what it takes to set up."""

HAS_FAST_CONVOLUTIONS = torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")


def use_cpu_kernels(model: nn.Module) -> None:
    """Makes the layers of a built model compute as below. Other layers, such as `Units`, stay: they are too small."""
    for layer in model.modules():
        faster = _FASTER.get(type(layer))
        if faster is not None:
            layer.__class__ = faster


class AffineLinear(nn.Linear):
    """`nn.Linear` by `affine`."""

    def forward(self, x: Tensor) -> Tensor:
        return affine(x, self.weight, self.bias)


class AffineGroupedLinear(GroupedLinear):
    """`GroupedLinear` by `affine`, `grouped_affine` and `ragged_affine`."""

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        return _grouped(*self.weights(), x, relu)

    def ragged(self, x: Tensor, sizes: list[int], relu: bool = False) -> Tensor:
        return ragged_affine(x, *self.weights(), sizes, relu)


class AffineStarLinear(StarLinear):
    """`StarLinear` likewise; the weights of a scenario are made when it is their turn."""

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        return _grouped(*self.weights(), x, relu)

    def ragged(self, x: Tensor, sizes: list[int], relu: bool = False) -> Tensor:
        assert self.bias is not None
        return ragged_affine(x, self.weight, self.bias + self.shared.bias, sizes, relu, self.shared.weight.T)


# By exact type: a class that computes something else with its weights keeps doing so.
_FASTER: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: AffineLinear,
    GroupedLinear: AffineGroupedLinear,
    StarLinear: AffineStarLinear,
}


def _grouped(weight: Tensor, bias: Tensor | None, x: Tensor, relu: bool) -> Tensor:
    if x.dim() == 3:
        return grouped_affine(x, weight, bias, relu)
    groups, in_dim, out_dim = weight.shape
    joined = weight.transpose(1, 2).reshape(groups * out_dim, in_dim)
    out = affine(x, joined, bias.reshape(-1) if bias is not None else None, relu)
    return out.view(len(x), groups, out_dim).transpose(0, 1)


def affine(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool = False) -> Tensor:
    """``x W^T + b``, as `torch.nn.functional.linear`, followed by a ReLU where wanted.

    Args:
        x: ``(..., in)``.
        weight: ``(out, in)``.
        bias: ``(out,)`` or None.
    """
    rows = x.shape[:-1].numel()
    if not _convolves(x, rows, rows * weight.numel()):
        out = linear(x, weight, bias)
        return out.relu() if relu else out
    out = _convolve(x.reshape(rows, -1), weight.unsqueeze(0), bias, relu)
    return out.view(*x.shape[:-1], len(weight))


def grouped_affine(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool = False) -> Tensor:
    """``x_g W_g + b_g`` for every group g, followed by a ReLU where wanted.

    Args:
        x: ``(groups, rows, in)``.
        weight: ``(groups, in, out)``.
        bias: ``(groups, out)`` or None.

    Returns:
        ``(groups, rows, out)``.
    """
    groups, rows, _ = x.shape
    side_by_side = x.transpose(0, 1)
    if side_by_side.is_contiguous() and _convolves(x, rows, rows * weight.numel()):
        flat = bias.flatten() if bias is not None else None
        out = _convolve(side_by_side.flatten(1), weight.transpose(1, 2), flat, relu)
        return out.unflatten(1, (groups, -1)).transpose(0, 1)
    out = torch.bmm(x, weight) if bias is None else torch.baddbmm(bias.unsqueeze(1), x, weight)
    return out.relu() if relu else out


def ragged_affine(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    sizes: list[int],
    relu: bool = False,
    factor: Tensor | None = None,
) -> Tensor:
    """``x_g W_g + b_g`` for groups of unequal size, followed by a ReLU where wanted.

    Args:
        x: ``(rows, in)``, sorted by group.
        weight: ``(groups, in, out)``.
        bias: ``(groups, out)`` or None.
        sizes: rows of each group.
        factor: ``(in, out)``; with it every weight is ``W_g ⊗ factor``.

    Returns:
        ``(rows, out)``.
    """
    out: Tensor = _Ragged.apply(*map(_as_autocast, (x, weight, bias, factor)), sizes, relu)
    return out


def _convolves(x: Tensor, rows: int, multiplications: int) -> bool:
    is_fitting = x.device.type == "cpu" and rows % IMAGES == 0 and multiplications >= SMALLEST
    return HAS_FAST_CONVOLUTIONS and is_fitting


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    """Rows ``(rows, groups * in)`` through ``(groups, out, in)``: ``(rows, groups * out)``."""
    out: Tensor = _Convolution.apply(*map(_as_autocast, (x, weight, bias)), relu)
    return out


def _as_autocast(tensor: Tensor | None) -> Tensor | None:
    """What autocast would do: it does not look into functions with gradients of their own."""
    if tensor is None or not torch.is_autocast_enabled(tensor.device.type):
        return tensor
    return tensor.to(torch.get_autocast_dtype(tensor.device.type))


class _Convolution(torch.autograd.Function):
    """A grouped convolution both ways, and the ReLU in place.

    oneDNN's gradient of the weights is slow where there are groups, a fifth of its usual rate: those are products.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        out = _rows(conv2d(_images(x), _kernel(weight), bias, groups=len(weight)))
        if relu:
            out.relu_()
        ctx.save_for_backward(x, weight, out if relu else None)
        ctx.has_bias = bias is not None
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None]:
        x, weight, out = ctx.saved_tensors
        if out is not None:
            gradient = torch.ops.aten.threshold_backward(gradient, out, 0)
        gradient = gradient.contiguous()
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = _rows(conv2d(_images(gradient), _kernel(weight.transpose(1, 2)), groups=len(weight)))
        return to_x, _to_weight(x, weight, gradient), gradient.sum(0) if ctx.has_bias else None, None


class _Ragged(torch.autograd.Function):
    """A product a group, each into its place: nothing is cut up and joined again, forward or backward.

    What a group needs is made when it is its turn, and is still in a cache when it is used.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        factor: Tensor | None,
        sizes: list[int],
        relu: bool,
    ) -> Tensor:
        factor = factor.contiguous() if factor is not None else None
        out = x.new_empty(len(x), weight.shape[2])
        for group, (mine, its) in enumerate(zip(x.split(sizes), out.split(sizes), strict=True)):
            torch.mm(mine, _weight_of(weight, group, factor), out=its)
            if bias is not None:
                its += bias[group]
        if relu:
            out.relu_()
        ctx.save_for_backward(x, weight, factor, out if relu else None)
        ctx.sizes, ctx.has_bias = sizes, bias is not None
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, factor, out = ctx.saved_tensors
        if out is not None:
            gradient = torch.ops.aten.threshold_backward(gradient, out, 0)
        to_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        to_weight = torch.empty_like(weight)
        to_bias = weight.new_empty(len(weight), weight.shape[2]) if ctx.has_bias else None
        to_factor = torch.zeros_like(factor) if factor is not None else None
        start = 0
        for group, size in enumerate(ctx.sizes):
            mine, its = gradient[start : start + size], x[start : start + size]
            torch.mm(its.T, mine, out=to_weight[group])
            if to_factor is not None:
                to_factor.addcmul_(to_weight[group], weight[group])
                to_weight[group] *= factor
            if to_x is not None:
                torch.mm(mine, _weight_of(weight, group, factor).T, out=to_x[start : start + size])
            if to_bias is not None:
                torch.sum(mine, 0, out=to_bias[group])
            start += size
        return to_x, to_weight, to_bias, to_factor, None, None


def _weight_of(weight: Tensor, group: int, factor: Tensor | None) -> Tensor:
    return weight[group] if factor is None else weight[group] * factor


def _to_weight(x: Tensor, weight: Tensor, gradient: Tensor) -> Tensor:
    """Gradient of the weights, ``(groups, out, in)``."""
    groups, out_dim, in_dim = weight.shape
    if groups > 1:
        pairs = zip(gradient.split(out_dim, dim=1), x.split(in_dim, dim=1), strict=True)
        return torch.stack([its.T @ mine for its, mine in pairs])  # a batched product would copy both
    images, kernel, ones = (_images(gradient), _images(x)), _kernel(weight), [1, 1]
    only_weight = [False, True, False]
    convolution_backward = torch.ops.aten.convolution_backward
    return convolution_backward(*images, kernel, None, ones, [0, 0], ones, False, [0, 0], 1, only_weight)[1].view_as(
        weight
    )


def _kernel(weight: Tensor) -> Tensor:
    """``(groups, out, in)`` as a kernel of one pixel."""
    return weight.flatten(0, 1)[:, :, None, None]


def _images(rows: Tensor) -> Tensor:
    """Rows ``(rows, channels)`` as images ``(images, channels, rows / images, 1)`` with their channels last."""
    return rows.view(IMAGES, -1, 1, rows.shape[1]).permute(0, 3, 1, 2)


def _rows(images: Tensor) -> Tensor:
    """The inverse of `_images`."""
    return images.permute(0, 2, 3, 1).flatten(0, 2)
