"""Random draws keyed by row: the draws of a row are the same in every batch, on every worker and on every device.

PyTorch's generators return numbers in the order of the calls. The draws of a row would therefore depend on the other
rows of its batch, and thus on the number of workers.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

# The finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014), with its constants as signed numbers.
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15 - 2**64, 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


def normal(keys: Tensor, draw: int, shape: torch.Size) -> Tensor:
    """Standard normal numbers.

    Args:
        keys: ``(batch,)`` int64, one key per row and step.
        draw: number of the draw within a step.
        shape: shape of the result, ``(copies, batch, ...)``.

    Returns:
        float32 of that shape. A number depends only on the key of its row, on `draw` and on its position in the row.
    """
    return _draw(_normal, keys, draw, shape)


def gumbel(keys: Tensor, draw: int, shape: torch.Size) -> Tensor:
    """Standard Gumbel numbers, ``-log(-log u)``, with the same arguments as `normal`."""
    return _draw(_gumbel, keys, draw, shape)


def _normal(bits: Tensor) -> Tensor:
    radius = _upper_bits(bits, 24).add_(1).div_(2**24).log_().mul_(-2).sqrt_()
    angle = bits.bitwise_and_(2**24 - 1).float().mul_(2 * math.pi / 2**24)
    return angle.cos_().mul_(radius)


def _gumbel(bits: Tensor) -> Tensor:
    uniform = _upper_bits(bits, 23).add_(0.5).div_(2**23)  # never 0 and, with 23 bits, never rounded to 1
    return uniform.log_().neg_().log_().neg_()


def _draw(distribution: Callable[[Tensor], Tensor], keys: Tensor, draw: int, shape: torch.Size) -> Tensor:
    """Makes each number from 64 random bits."""
    copies, batch, *rest = shape
    width = math.prod(rest)
    positions = torch.arange(copies * width, device=keys.device).view(copies, 1, width).mul_(_STEP)
    starts = _mix(keys + _signed(draw * _STEP)).unsqueeze(1)
    return distribution(_mix(starts + positions)).view(shape)


def _upper_bits(bits: Tensor, count: int) -> Tensor:
    """The first `count` bits as a number."""
    return _shift_right(bits, 64 - count).float()


def _signed(number: int) -> int:
    """The number modulo 2^64, as a signed 64-bit number."""
    return (number + 2**63) % 2**64 - 2**63


def _mix(values: Tensor) -> Tensor:
    """Mixes numbers in place: every output bit depends on every input bit. Products wrap around, as intended."""
    values.bitwise_xor_(_shift_right(values, 30)).mul_(_FIRST)
    values.bitwise_xor_(_shift_right(values, 27)).mul_(_SECOND)
    return values.bitwise_xor_(_shift_right(values, 31))


def _shift_right(values: Tensor, bits: int) -> Tensor:
    """Shifts right and fills with zeros, also for negative numbers."""
    return (values >> bits).bitwise_and_(2 ** (64 - bits) - 1)
