"""Types of arguments, for argparse."""

import argparse

from pipeline.sizes import parse_bytes


def positive(text: str) -> int:
    """A whole number above zero."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above zero, found {text!r}")
    return int(text)


def worker_count(text: str) -> int | tuple[int, int]:
    """A whole number above zero, or a range of two such as 2-8."""
    fewest, dash, most = text.partition("-")
    if not dash:
        return positive(text)
    if positive(fewest) > positive(most):
        raise argparse.ArgumentTypeError(f"expected a range such as 2-8, found {text!r}")
    return int(fewest), int(most)


def size(text: str) -> int:
    """Bytes of a size such as 80GiB."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def pair(flag: str, text: str) -> tuple[str, str]:
    """A flag with its value."""
    return flag, text
