"""What the rows of a partition contain: rows per scenario value, labels per task, matches in side tables."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

from pipeline.documents import KNOWN_KEYS_ONLY

OTHER = "other"
UNLISTED_VALUES = 20
"""Values per level and partition that are counted one by one although the experiment does not list them."""


@dataclass(frozen=True)
class LevelContent:
    """The rows of one level of scenarios."""

    __pydantic_config__ = KNOWN_KEYS_ONLY

    rows: dict[str, int]  # value of the experiment, or `other` -> kept rows; a value without rows is left out
    unlisted: dict[str, int] = field(default_factory=dict)  # most frequent values outside the experiment -> rows
    unlisted_rest: int = 0  # rows with a less frequent value outside the experiment


@dataclass(frozen=True)
class LabelSums:
    """Sums over the labels of one task, on the training scale and by their weights, those of `logs.negatives` included:
    rates are therefore those of the whole log."""

    __pydantic_config__ = KNOWN_KEYS_ONLY

    rows: int
    weight: float
    positive: float  # weight of labels above zero
    sum: float
    squares: float
    log_sum: float  # of the logarithms of labels above zero
    log_squares: float


@dataclass(frozen=True)
class AfterCounts:
    """The labels of one task in the rows in which another task, that it comes after, has a label."""

    __pydantic_config__ = KNOWN_KEYS_ONLY

    rows: int  # in which the other task happened: its label is 1
    weight: float  # of these rows
    positive: float  # weight of those in which the label is above zero
    contradictions: int  # rows in which the label is above zero although the other task did not happen


@dataclass(frozen=True)
class TaskContent:
    """The labels of one task, in the unit of the log. Rows without a label are not counted."""

    __pydantic_config__ = KNOWN_KEYS_ONLY

    labels: int
    zeros: int
    negative: int
    sum: float
    lowest: float | None  # None without labels
    highest: float | None
    weightless: int = 0  # labels whose weight is 0
    sums: LabelSums | None = None  # None: an earlier version made it
    after: dict[str, AfterCounts] = field(default_factory=dict)
    """By the task that this task came after when the rows were counted, which an experiment may change."""
    clipped: int = 0  # labels of the log above `max`


@dataclass(frozen=True)
class Content:
    """The kept rows of a unit, of a partition, or of several partitions."""

    __pydantic_config__ = KNOWN_KEYS_ONLY

    scenarios: dict[str, LevelContent]
    tasks: dict[str, TaskContent]
    matched: list[int]  # rows with a row in the side table, in the order of logs.joins


def merged(parts: Sequence[Content], most: int | None = None) -> Content:
    """The content of all rows together.

    Args:
        parts: at least one, of the same levels, tasks and side tables.
        most: number of values outside the experiment that are kept; None: all.
    """
    first = parts[0]
    return Content(
        {name: _merged_level([part.scenarios[name] for part in parts], most) for name in first.scenarios},
        {name: _merged_task([part.tasks[name] for part in parts]) for name in first.tasks},
        [sum(rows) for rows in zip(*(part.matched for part in parts), strict=True)],
    )


def most_frequent(counts: dict[str, int], most: int | None) -> tuple[dict[str, int], int]:
    """The most frequent values with their rows, and the rows of all others."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    kept = dict(ordered[:most])
    return kept, sum(counts.values()) - sum(kept.values())


def _merged_level(parts: list[LevelContent], most: int | None) -> LevelContent:
    rows: Counter[str] = Counter()
    unlisted: Counter[str] = Counter()
    for part in parts:
        rows.update(part.rows)
        unlisted.update(part.unlisted)
    kept, rest = most_frequent(unlisted, most)
    return LevelContent(dict(rows), kept, rest + sum(part.unlisted_rest for part in parts))


def _merged_task(parts: list[TaskContent]) -> TaskContent:
    after = dict.fromkeys(name for part in parts for name in part.after)
    return TaskContent(
        labels=sum(part.labels for part in parts),
        zeros=sum(part.zeros for part in parts),
        negative=sum(part.negative for part in parts),
        sum=sum(part.sum for part in parts),
        lowest=min((part.lowest for part in parts if part.lowest is not None), default=None),
        weightless=sum(part.weightless for part in parts),
        highest=max((part.highest for part in parts if part.highest is not None), default=None),
        sums=_merged_sums([part.sums for part in parts if part.sums is not None]),
        after={name: AfterCounts(*_added([p.after[name] for p in parts if name in p.after])) for name in after},
        clipped=sum(part.clipped for part in parts),
    )


def _merged_sums(parts: list[LabelSums]) -> LabelSums | None:
    """The sums over all parts that have them."""
    if not parts:
        return None
    return LabelSums(*_added(parts))


def _added(parts: Sequence[LabelSums] | Sequence[AfterCounts]) -> list[Any]:
    """The sum of each field."""
    return [sum(values) for values in zip(*map(astuple, parts), strict=True)]
