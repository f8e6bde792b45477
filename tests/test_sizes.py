"""Sizes in bytes."""

import pytest

from pipeline.sizes import in_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16GiB", 16 * 2**30),
        (" 1.5 MiB ", 3 * 2**19),
        ("80gb", 80 * 2**30),
        ("2T", 2 * 2**40),
        ("512", 512),
        ("9" * 30, int("9" * 30)),
    ],
)
def test_sizes_are_read_with_units(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "0", "0GiB", "0.0001", "-1GiB", "1e9", "inf", "GiB", "16 GiB of it", "16PiB", "٣"]
)
def test_other_texts_are_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size: write it as 80GiB or 512MiB"):
        parse_bytes(text)


def test_sizes_are_printed_with_units() -> None:
    assert [in_bytes(n) for n in (0, 1023, 1536, 5 * 2**30)] == ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]
