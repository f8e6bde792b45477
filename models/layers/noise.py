"""Random draws keyed by row: the same for a row whatever batch, worker or device it is on.

PyTorch's generators give numbers in the order in which they are asked, so a row's draw would depend on the rows beside
it and with them on the number of workers.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

# The finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014), its constants as signed numbers.
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15 - 2**64, 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


def normal(keys: Tensor, draw: int, shape: torch.Size) -> Tensor:
    """Standard normal numbers.

    Args:
        keys: ``(batch,)`` int64, one a row and step.
        draw: number of the draw within a step.
        shape: ``(copies, batch, ...)`` of what is wanted.

    Returns:
        float32 of that shape; a row's numbers follow from its key, the draw and their place in the row.
    """
    return _drawn(_normal, keys, draw, shape)


def gumbel(keys: Tensor, draw: int, shape: torch.Size) -> Tensor:
    """Standard Gumbel numbers, ``-log(-log u)``; as `normal`."""
    return _drawn(_gumbel, keys, draw, shape)


def _normal(bits: Tensor) -> Tensor:
    radius = _upper(bits, 24).add_(1).div_(2**24).log_().mul_(-2).sqrt_()
    angle = bits.bitwise_and_(2**24 - 1).float().mul_(2 * math.pi / 2**24)
    return angle.cos_().mul_(radius)


def _gumbel(bits: Tensor) -> Tensor:
    uniform = _upper(bits, 23).add_(0.5).div_(2**23)  # never 0 and, with 23 bits, never rounded to 1
    return uniform.log_().neg_().log_().neg_()


def _drawn(distribution: Callable[[Tensor], Tensor], keys: Tensor, draw: int, shape: torch.Size) -> Tensor:
    """Numbers made of 64 random bits each."""
    copies, batch, *rest = shape
    width = math.prod(rest)
    places = torch.arange(copies * width, device=keys.device).view(copies, 1, width).mul_(_STEP)
    starts = _mixed(keys + _signed(draw * _STEP)).unsqueeze(1)
    return distribution(_mixed(starts + places)).view(shape)


def _upper(bits: Tensor, count: int) -> Tensor:
    """The first so many bits as a number."""
    return _shifted(bits, 64 - count).float()


def _signed(number: int) -> int:
    """The number as 64 bits hold it."""
    return (number + 2**63) % 2**64 - 2**63


def _mixed(values: Tensor) -> Tensor:
    """Every bit of a number depends on every bit of the given one, in its place. Products wrap, as they should."""
    values.bitwise_xor_(_shifted(values, 30)).mul_(_FIRST)
    values.bitwise_xor_(_shifted(values, 27)).mul_(_SECOND)
    return values.bitwise_xor_(_shifted(values, 31))


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Shifted right with zeros coming in, also for negative numbers."""
    return (values >> bits).bitwise_and_(2 ** (64 - bits) - 1)
