"""Sizes in bytes: as people write them, and in a readable form."""

import re
from fractions import Fraction

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_bytes(text: str) -> int:
    """Bytes of a size such as ``80GiB``. ``80GB`` and ``80G`` mean the same.

    Raises:
        ValueError: the text is not a size above zero.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", text.strip(), re.IGNORECASE | re.ASCII)
    size = int(Fraction(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if size < 1:
        raise ValueError(f"{text!r} is not a size: write it as 80GiB or 512MiB")
    return size


def in_bytes(size: float) -> str:
    """A number of bytes in a readable form: `1.4 MiB`."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"
