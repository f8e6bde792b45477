"""What YAML has made of a value that was written without quotes, where the experiment file expects something else."""

from typing import Any

SPELLINGS = {True: "yes, on and true", False: "no, off and false"}
"""The words that YAML 1.1 reads as booleans, also with a capital first letter or in capitals."""

EXAMPLES = {True: "YES", False: "NO"}


def describe_text(found: Any, is_scenario: bool) -> str | None:
    """Why a value is no text, and what to do; None if it is not a single value.

    Args:
        found: the value.
        is_scenario: whether the place names a value of a scenario's column, which may be a boolean.
    """
    if isinstance(found, bool):
        also = "; for a column of booleans, write 1 and 0" if is_scenario else ""
        return f"{_meaning(found)}: put a text in quotes, such as '{EXAMPLES[found]}'{also}"
    if found is None:
        return "YAML reads null, ~ and an empty value without quotes as nothing: put a text in quotes, such as 'null'"
    if isinstance(found, int | float):
        return f"expected a text, found the number {found}: put a text in quotes, such as '{found}'"
    return None


def describe_found(found: Any) -> str:
    """A value as found in a place that expects no text."""
    if isinstance(found, bool):
        return f"{str(found).lower()} ({_meaning(found)})"
    return f"{found!r} ({type(found).__name__})"


def _meaning(found: bool) -> str:
    return f"YAML reads {SPELLINGS[found]}, also in capitals, without quotes as {str(found).lower()}"
