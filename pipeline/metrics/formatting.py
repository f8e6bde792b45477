"""How numbers are written for people: the same in log lines, in terminal tables and in the report."""

UNDEFINED = "-"
"""Shown in place of a metric without a value."""
UNDEFINED_BECAUSE = "undefined: no rows with a label, only one class, constant values, or values that are too large"

NUMBER = ".4f"
"""The format of a metric; d3, which writes the numbers in charts, reads it too."""

LARGEST_EXACT = 1e4
"""From here on numbers have no decimals, such as a mean of 41,533 ms."""

LARGEST_FIXED = 1e10
"""From here on numbers have an exponent: metrics in the log's unit may have any size."""


def format_value(value: float | int | None) -> str:
    """A metric or a count."""
    if value is None:
        return UNDEFINED
    if isinstance(value, int):
        return f"{value:,}"
    size = abs(value)
    if size < LARGEST_EXACT:
        return f"{value:{NUMBER}}"
    return f"{value:,.0f}" if size < LARGEST_FIXED else f"{value:.4e}"


def format_values(values: dict[str, float | None]) -> str:
    """Metrics with their names, in one line."""
    return " ".join(f"{name} {format_value(value)}" for name, value in values.items())
