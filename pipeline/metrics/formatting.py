"""How numbers are written for people: the same in log lines, in terminal tables and in the report."""

UNDEFINED = "-"
"""Shown in place of a metric without a value."""
UNDEFINED_BECAUSE = "undefined: no rows with a label, only one class, or constant values"

NUMBER = ".4f"
"""The format of a metric; d3, which writes the numbers in charts, reads it too."""


def format_value(value: float | int | None) -> str:
    """A metric or a count."""
    if value is None:
        return UNDEFINED
    return f"{value:,}" if isinstance(value, int) else f"{value:{NUMBER}}"


def format_values(values: dict[str, float | None]) -> str:
    """Metrics with their names, in one line."""
    return " ".join(f"{name} {format_value(value)}" for name, value in values.items())
