"""The meaning of partition values: whole numbers, dates, times or texts, in whatever spelling.

All values of one level of folders and the bounds of the splits have one kind. Values of different kinds cannot be
ordered. A date without a time is a period: a bound that is a day or a month includes everything in it.
"""

import re
from calendar import monthrange
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import unquote

PartitionValue = int | str
Moment = int | datetime | str | tuple[int | str, ...]

WITHOUT_VALUE = ("", "__HIVE_DEFAULT_PARTITION__")
"""Values of the folders in which Hive and Spark put rows whose partition column is null or empty."""

_NUMBER = re.compile(r"[-+]?[0-9]+")
_DIGITS = re.compile(r"[0-9]+")
_TIME = r"([0-9]{1,2})(?::([0-9]{2})(?::([0-9]{2})(?:\.([0-9]{1,6}))?)?)?"
_DATES = [
    re.compile(rf"([0-9]{{4}})-([0-9]{{1,2}})(?:-([0-9]{{1,2}})(?:[ T-]{_TIME}Z?)?)?"),
    re.compile(r"([0-9]{4})([0-9]{2})([0-9]{2})(?:[ T-]?([0-9]{2})(?::?([0-9]{2}))?)?"),
]
_PRECISIONS = ("months", "days", "times of days")


@dataclass(frozen=True)
class Meaning:
    """A value as a range of its kind; for everything but dates without a time, `first` and `last` are equal."""

    first: Moment
    last: Moment
    precision: int = 0  # of a date: index into _PRECISIONS


class MixedKinds(ValueError):
    """Bounds and values that cannot be ordered, with two examples."""

    def __init__(self, kinds: tuple[str, str], examples: tuple[str, str]) -> None:
        self.kinds, self.examples = kinds, examples
        super().__init__(self.shown(*examples))

    def shown(self, first: str, second: str) -> str:
        """The mistake, with the examples as they are called where they were found."""
        return f"{self.kinds[0]} (such as {first}) and {self.kinds[1]} (such as {second}) cannot be ordered"


Read = Callable[[str], Meaning | None]


def unescape(value: str) -> str:
    """A value from the name of a folder, in which Hive writes characters such as a colon as %3A."""
    return unquote(value)


def has_value(value: str) -> bool:
    """Whether a folder's value is a value, and not the mark of a null."""
    return value not in WITHOUT_VALUE


def as_number(text: str) -> Meaning | None:
    if not _NUMBER.fullmatch(text):
        return None
    return Meaning(int(text), int(text))


def as_date(text: str) -> Meaning | None:
    """A month, a day of the calendar, or a time of a day."""
    match = next((found for pattern in _DATES if (found := pattern.fullmatch(text))), None)
    if match is None:
        return None
    groups: list[Any] = [*match.groups(), None, None]  # one of the patterns ends with the minutes
    year, month, day, hour, minute, second, fraction = groups[:7]
    try:
        first = datetime(
            int(year), int(month), int(day or 1),
            int(hour or 0), int(minute or 0), int(second or 0), int((fraction or "").ljust(6, "0")),
        )  # fmt: skip
    except ValueError:  # not in the calendar
        return None
    if hour is not None:
        return Meaning(first, first, 2)
    days = 1 if day is not None else monthrange(first.year, first.month)[1]
    return Meaning(first, first + (timedelta(days=days) - timedelta(microseconds=1)), 1 if day is not None else 0)


def as_time(text: str) -> Meaning | None:
    """A time without a date, in microseconds since midnight; a number up to 23 is an hour."""
    match = re.fullmatch(_TIME, text)
    if match is None:
        return None
    hour, minute, second, fraction = match.groups()
    hours, minutes, seconds = int(hour), int(minute or 0), int(second or 0)
    if hours > 23 or minutes > 59 or seconds > 59:
        return None
    moment = ((hours * 60 + minutes) * 60 + seconds) * 10**6 + int((fraction or "").ljust(6, "0"))
    return Meaning(moment, moment)


def _as_text(text: str) -> Meaning:
    return Meaning(text, text)


def _as_shape(text: str) -> Meaning | None:
    """The year, month and day of a date, also if it is not in the calendar, such as 2026-02-31."""
    match = re.fullmatch(r"([0-9]{4})-([0-9]{1,2})-([0-9]{1,2})(?:[^0-9].*)?", text)
    if match is None:
        return None
    year, month, day = map(int, match.groups())
    shape = (year, month, day, text[match.end(3) :])
    return Meaning(shape, shape)


def _as_numbers_in_text(text: str) -> Meaning:
    numbers = tuple(map(int, _DIGITS.findall(text)))
    return Meaning(numbers, numbers)


def _have_one_pattern(texts: Sequence[str]) -> bool:
    """Whether texts differ only in numbers inside of them, such as v2 and v10."""
    patterns = {_DIGITS.sub("#", text) for text in texts}
    return len(patterns) == 1 and "#" in patterns.pop()


_KINDS: dict[str, Read] = {"whole numbers": as_number, "dates": as_date, "times": as_time}


def kinds_of(text: str) -> tuple[str, ...]:
    """All kinds of an unescaped value except text."""
    return tuple(kind for kind, read in _KINDS.items() if read(text) is not None)


def find_kind(bounds: Sequence[PartitionValue], values: Sequence[str], is_whole_log: bool) -> Read:
    """The function that gives the meaning of unescaped bounds and values, which it accepts all.

    Where some are plain texts, all are compared as texts, if this contradicts no other meaning and the bounds are
    neither numbers in the experiment nor dates or times.

    For a log that has an order as a whole, some of its values have the same places between the bounds as all have: the
    plain text, because of which the others are texts, may then be missing.

    Raises:
        MixedKinds: they have no common order.
    """
    ends = [unescape(str(bound)) for bound in bounds]
    texts = [*ends, *values]
    # Digits such as 20260109 and 2026010910 are a day and its hour: as numbers, no bound would include it.
    are_dates = len(set(map(len, texts))) > 1 and all(len(text) >= 8 and as_date(text) is not None for text in texts)
    for read in [as_date] if are_dates else _KINDS.values():
        if all(read(text) is not None for text in texts):
            if read is as_date:
                _check_precision(ends, values)
            return read
    written_as_texts = all(isinstance(bound, str) for bound in bounds)
    bounds_are = [kind for kind, read in _KINDS.items() if all(read(end) is not None for end in ends)]
    may_be_texts = written_as_texts and (not bounds_are or "whole numbers" in bounds_are)
    has_plain_text = any(all(read(text) is None for read in _KINDS.values()) for text in texts)
    may_be_texts = may_be_texts and (has_plain_text or not is_whole_log)
    readings = [*_KINDS.values(), *([_as_shape] if any(as_date(text) is not None for text in texts) else [])]
    if may_be_texts and all(_agrees_with_texts(read, texts) for read in readings):
        return _as_text
    raise _mixed_kinds(texts)


def _check_precision(ends: list[str], values: Sequence[str]) -> None:
    """Raises MixedKinds if a value contains another value, or is larger than the bounds: a day for bounds in hours."""
    by_precision: dict[int, str] = {}
    for value in values:
        by_precision.setdefault(_precision(value), value)
    examples = sorted(by_precision.items())
    if len(examples) > 1:
        (one, first), (other, second) = examples[:2]
        raise MixedKinds((_PRECISIONS[one], _PRECISIONS[other]), (first, second))
    for precision, value in examples:
        for end in ends:
            if _precision(end) > precision:
                raise MixedKinds((_PRECISIONS[_precision(end)], _PRECISIONS[precision]), (end, value))


def _precision(text: str) -> int:
    meaning = as_date(text)
    assert meaning is not None, "all are dates"
    return meaning.precision


def _agrees_with_texts(read: Read, texts: list[str]) -> bool:
    """Whether the texts that have a meaning of this kind have the same order as texts."""
    found = [(meaning.first, text) for text in set(texts) if (meaning := read(text)) is not None]
    by_text = [first for first, _ in sorted(found, key=lambda item: item[1])]
    return all(one < other for one, other in zip(by_text, by_text[1:], strict=False))  # type: ignore[operator]


def _mixed_kinds(texts: list[str]) -> MixedKinds:
    """The first two texts, in the given order, without a common kind."""
    examples: dict[tuple[str, ...], str] = {}
    for text in texts:
        examples.setdefault(kinds_of(text), text)
    for kinds, text in examples.items():
        for others, other in examples.items():
            if not set(kinds) & set(others) and kinds != others:
                names = [found[0] if found else "texts" for found in (kinds, others)]
                return MixedKinds((names[0], names[1]), (text, other))
    raise AssertionError("texts of which each two have a common kind have one kind")


Key = tuple[Any, ...]  # one moment per level; keys of one order can be compared


@dataclass(frozen=True)
class Range:
    """The first and the last moment of a split, per level."""

    first: Key
    last: Key


class PartitionOrder:
    """The order of partitions, and the ranges of the splits, by the meaning of their values."""

    def __init__(
        self,
        bounds: Mapping[str, tuple[Sequence[PartitionValue], Sequence[PartitionValue]]],
        values: Sequence[Sequence[str]],
        is_whole_log: bool = True,
    ) -> None:
        """Decides the kind of each level.

        Args:
            bounds: first and last bound of each split, with one value per level.
            values: of each partition, the values of its folders as they are spelled there.
            is_whole_log: whether these are all partitions; if not, all together are known to have an order.

        Raises:
            MixedKinds: the values of a level have no common order.
        """
        ends = [end for pair in bounds.values() for end in pair]
        known = [list(map(unescape, value)) for value in values if all(map(has_value, value))]
        self._read: list[Read] = []
        self._read_numbers: list[Read] = []  # the same, except that numbers in texts are numbers
        self._texts: list[str] = []  # of the levels that have numbers in texts
        for i, level in enumerate(zip(*ends, strict=True)):
            read = find_kind(level, [value[i] for value in known], is_whole_log)
            texts = [*(unescape(str(end)) for end in level), *(value[i] for value in known)]
            has_numbers = read is _as_text and _have_one_pattern(texts)
            self._read.append(read)
            self._read_numbers.append(_as_numbers_in_text if has_numbers else read)
            self._texts += texts if has_numbers else []
        self.ranges = {split: _range(*pair, self._read) for split, pair in bounds.items()}
        self._number_ranges = {split: _range(*pair, self._read_numbers) for split, pair in bounds.items()}

    def key(self, parts: Sequence[str]) -> Key:
        """Sort key of a partition: by meaning, then by spelling; a partition without a value comes last."""
        if not all(map(has_value, parts)):
            return (True, (), tuple(parts))
        return (False, tuple(meaning.first for meaning in _meanings(parts, self._read)), tuple(parts))

    def split_of(self, parts: Sequence[str]) -> str | None:
        """The split that contains a partition; None if no split does, or if the partition has no value."""
        return self._find(parts, self._read, self.ranges)

    def is_misplaced(self, parts: Sequence[str]) -> bool:
        """Whether a partition would be in another split if the numbers in texts were compared as numbers."""
        return self._find(parts, self._read_numbers, self._number_ranges) != self.split_of(parts)

    def describe_texts(self) -> str:
        """How texts with numbers inside are compared, and what to do; empty if the numbers have the same order."""
        texts = sorted(set(self._texts))
        for one, other in zip(texts, texts[1:], strict=False):
            if _as_numbers_in_text(one).first > _as_numbers_in_text(other).first:  # type: ignore[operator]
                return (
                    f"Texts are compared character by character, so that {one!r} is before {other!r}: write the "
                    "numbers in all folders and bounds with the same number of digits, such as "
                    f"{_with_digits(other, one)!r}"
                )
        return ""

    @staticmethod
    def _find(parts: Sequence[str], reads: Sequence[Read], ranges: Mapping[str, Range]) -> str | None:
        if not all(map(has_value, parts)):
            return None
        first = tuple(meaning.first for meaning in _meanings(parts, reads))
        return next((name for name, of in ranges.items() if of.first <= first <= of.last), None)


def _range(first: Sequence[PartitionValue], last: Sequence[PartitionValue], reads: Sequence[Read]) -> Range:
    return Range(
        tuple(meaning.first for meaning in _meanings(list(map(str, first)), reads)),
        tuple(meaning.last for meaning in _meanings(list(map(str, last)), reads)),
    )


def _meanings(parts: Sequence[str], reads: Sequence[Read]) -> list[Meaning]:
    meanings = []
    for read, part in zip(reads, parts, strict=True):
        meaning = read(unescape(part))
        assert meaning is not None, "the kind was chosen for these values"
        meanings.append(meaning)
    return meanings


def _with_digits(text: str, like: str) -> str:
    """A text whose numbers have at least as many digits as those of another text of its pattern."""
    widths = iter([len(number) for number in _DIGITS.findall(like)])
    return _DIGITS.sub(lambda number: number[0].zfill(next(widths)), text)
