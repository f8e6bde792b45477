"""Random draws keyed by row: the same for a row whatever batch, worker or device it is on.

PyTorch's generators give numbers in the order in which they are asked, so a row's draw would depend on the rows beside
it and with them on the number of workers.
"""

import math

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
    bits = _bits(keys, draw, shape)
    radius = ((_upper(bits, 24) + 1) / 2**24).log().mul(-2).sqrt()
    angle = (bits & (2**24 - 1)).float() * (2 * math.pi / 2**24)
    return radius * angle.cos()


def gumbel(keys: Tensor, draw: int, shape: torch.Size) -> Tensor:
    """Standard Gumbel numbers, ``-log(-log u)``; as `normal`."""
    uniform = (_upper(_bits(keys, draw, shape), 23) + 0.5) / 2**23  # never 0 and, with 23 bits, never rounded to 1
    return -(-uniform.log()).log()


def _bits(keys: Tensor, draw: int, shape: torch.Size) -> Tensor:
    """64 random bits a number."""
    copies, batch, *rest = shape
    width = math.prod(rest)
    places = torch.arange(copies * width, device=keys.device).view(copies, 1, width)
    return _mixed(_mixed(keys + _signed(draw * _STEP)).unsqueeze(1) + places * _STEP).view(shape)


def _upper(bits: Tensor, count: int) -> Tensor:
    """The first so many bits as a number."""
    return _shifted(bits, 64 - count).float()


def _signed(number: int) -> int:
    """The number as 64 bits hold it."""
    return (number + 2**63) % 2**64 - 2**63


def _mixed(values: Tensor) -> Tensor:
    """Every bit of a number depends on every bit of the given one. Products wrap, as they should."""
    values = (values ^ _shifted(values, 30)) * _FIRST
    values = (values ^ _shifted(values, 27)) * _SECOND
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Shifted right with zeros coming in, also for negative numbers."""
    return (values >> bits) & (2 ** (64 - bits) - 1)
