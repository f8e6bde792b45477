"""Faster linear layers on CPUs.

Models are plain PyTorch. `use_cpu_kernels` makes their layers compute the same in another way: the names of layers and
parameters do not change, and results differ only by rounding.

On CPUs PyTorch multiplies float32 matrices with MKL, which leaves half of the vector width of AMD's processors unused,
and convolves with oneDNN, which uses all of it. A linear layer is a convolution with a kernel of one pixel: rows become
images whose channels are the last dimension in memory, as they already are, so nothing is copied. docs/performance.md
has the measurements.
"""

import platform
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from models.layers.grouped import GroupedLinear
from models.trunks.star import StarLinear

IMAGES = 16
"""With fewer images, PyTorch leaves a convolution on one thread to MKL."""
SMALLEST = 2**22
"""Number of multiplications above which a convolution is worth its setup time."""

HAS_FAST_CONVOLUTIONS = torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")


def use_cpu_kernels(model: nn.Module) -> None:
    """Replaces the layers of a built model by those below. Others, such as `Units`, stay: they are too small."""
    for layer in model.modules():
        faster = _FASTER.get(type(layer))
        if faster is not None:
            layer.__class__ = faster


class AffineLinear(nn.Linear):
    """`nn.Linear`, computed by `affine`."""

    def forward(self, x: Tensor) -> Tensor:
        return affine(x, self.weight, self.bias)


class AffineGroupedLinear(GroupedLinear):
    """`GroupedLinear`, computed by `affine`, `grouped_affine` and `ragged_affine`."""

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        return _grouped(*self.weights(), x, relu)

    def ragged(self, x: Tensor, sizes: list[int], relu: bool = False) -> Tensor:
        return ragged_affine(x, *self.weights(), sizes, relu)


class AffineStarLinear(StarLinear):
    """`StarLinear`, computed in the same way. `ragged` computes the weights of one scenario at a time."""

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        return _grouped(*self.weights(), x, relu)

    def ragged(self, x: Tensor, sizes: list[int], relu: bool = False) -> Tensor:
        assert self.bias is not None
        return ragged_affine(x, self.weight, self.bias + self.shared.bias, sizes, relu, self.shared.weight.T)


# By exact type: a subclass may compute something else with its weights.
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
    """``x W^T + b``, as `torch.nn.functional.linear`, followed by a ReLU if `relu`.

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
    """``x_g W_g + b_g`` for every group g, followed by a ReLU if `relu`.

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
    """``x_g W_g + b_g`` for groups of unequal size, followed by a ReLU if `relu`.

    Args:
        x: ``(rows, in)``, sorted by group.
        weight: ``(groups, in, out)``.
        bias: ``(groups, out)`` or None.
        sizes: number of rows of each group.
        factor: ``(in, out)`` or None; if given, the weight of each group is ``W_g ⊗ factor``.

    Returns:
        ``(rows, out)``.
    """
    out: Tensor = _Ragged.apply(*map(_as_autocast, (x, weight, bias, factor)), sizes, relu)
    return out


def _convolves(x: Tensor, rows: int, multiplications: int) -> bool:
    is_fitting = x.device.type == "cpu" and rows % IMAGES == 0 and multiplications >= SMALLEST
    return HAS_FAST_CONVOLUTIONS and is_fitting


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    """Multiplies rows ``(rows, groups * in)`` by weights ``(groups, out, in)``; returns ``(rows, groups * out)``."""
    out: Tensor = _Convolution.apply(*map(_as_autocast, (x, weight, bias)), relu)
    return out


def _as_autocast(tensor: Tensor | None) -> Tensor | None:
    """Casts a tensor as autocast would, which does not apply to functions that define their own gradient."""
    if tensor is None or not torch.is_autocast_enabled(tensor.device.type):
        return tensor
    return tensor.to(torch.get_autocast_dtype(tensor.device.type))


class _Convolution(torch.autograd.Function):
    """A grouped convolution, forward and backward, with the ReLU in place.

    With groups, oneDNN computes the gradient of the weights at a fifth of its usual speed, so matrix products compute
    it instead.
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
    """One matrix product per group, written in place: nothing is split or joined, forward or backward.

    The weight of a group is computed just before its product, so that it is still in a cache then.
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
        for group, (inputs, outputs) in enumerate(zip(x.split(sizes), out.split(sizes), strict=True)):
            torch.mm(inputs, _weight_of(weight, group, factor), out=outputs)
            if bias is not None:
                outputs += bias[group]
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
            to_outputs, inputs = gradient[start : start + size], x[start : start + size]
            torch.mm(inputs.T, to_outputs, out=to_weight[group])
            if to_factor is not None:
                to_factor.addcmul_(to_weight[group], weight[group])
                to_weight[group] *= factor
            if to_x is not None:
                torch.mm(to_outputs, _weight_of(weight, group, factor).T, out=to_x[start : start + size])
            if to_bias is not None:
                torch.sum(to_outputs, 0, out=to_bias[group])
            start += size
        return to_x, to_weight, to_bias, to_factor, None, None


def _weight_of(weight: Tensor, group: int, factor: Tensor | None) -> Tensor:
    return weight[group] if factor is None else weight[group] * factor


def _to_weight(x: Tensor, weight: Tensor, gradient: Tensor) -> Tensor:
    """Gradient of the weights, ``(groups, out, in)``."""
    groups, out_dim, in_dim = weight.shape
    if groups > 1:
        pairs = zip(gradient.split(out_dim, dim=1), x.split(in_dim, dim=1), strict=True)
        return torch.stack([to_outputs.T @ inputs for to_outputs, inputs in pairs])  # a batched product would copy both
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
