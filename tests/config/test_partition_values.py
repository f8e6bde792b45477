"""The meaning of partition values: in every spelling, the split of a partition is that of its value."""

import re
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.config.logs import LogsConfig
from pipeline.errors import UserError

DAY = datetime(2026, 1, 1)


def logs(train: list[Any], test: list[Any] | None = None, partition: Any = "dt") -> LogsConfig:
    splits = {"train": train} | ({} if test is None else {"test": test})
    return LogsConfig.model_validate({"path": "log", "partition": partition, "splits": splits})


def split_of(config: LogsConfig, *values: str) -> list[str | None]:
    """The split of each value in a log that has all of them; each alone has the same split."""
    order = config.order(values, is_whole_log=True)
    found = [order.split_of(config.parts_of(value)) for value in values]
    assert [config.split_of(value) for value in values] == found
    return found


def number(value: int) -> list[str]:
    sign, digits = "-" if value < 0 else "", str(abs(value))
    return [f"{sign}{digits}", f"{sign}{digits.zfill(6)}", *([f"+{digits}", f"%2B{digits}"] if value >= 0 else [])]


def day(value: int) -> list[str]:
    date = DAY + timedelta(days=value)
    return [f"{date:%Y-%m-%d}", f"{date:%Y%m%d}", f"{date.year}-{date.month}-{date.day}", f"{date:%Y%%2D%m-%d}"]


def hour(value: int) -> list[str]:
    date = DAY + timedelta(hours=value)
    spellings = ["%Y-%m-%d %H", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H", "%Y-%m-%d-%H", "%Y%m%d%H", "%Y-%m-%d %H%%3A00"]
    return [date.strftime(spelling) for spelling in spellings]


def minute(value: int) -> list[str]:
    hours, minutes = divmod(value % 1440, 60)
    return [f"{hours}:{minutes:02d}", f"{hours:02d}:{minutes:02d}", f"{hours:02d}%3A{minutes:02d}:00"]


KINDS = {"number": number, "day": day, "hour": hour, "minute": minute}


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_the_split_of_a_partition_is_that_of_its_value(kind: str, data: st.DataObject) -> None:
    spell, low = KINDS[kind], -50 if kind == "number" else 0
    ends = sorted(data.draw(st.lists(st.integers(low, 900), min_size=4, max_size=4, unique=True)))
    bounds: list[Any] = [data.draw(st.sampled_from(spell(end))) for end in ends]
    if kind == "number" and data.draw(st.booleans()):
        bounds = list(ends)
    values = data.draw(st.lists(st.integers(low, 900), min_size=1, max_size=12))
    spelt = [data.draw(st.sampled_from(spell(value))) for value in values]
    config = logs(bounds[:2], bounds[2:])
    expected = ["train" if ends[0] <= v <= ends[1] else "test" if ends[2] <= v <= ends[3] else None for v in values]
    assert split_of(config, *spelt) == expected
    order = config.order(spelt, is_whole_log=True)
    by_key = sorted(zip(spelt, values, strict=True), key=lambda item: order.key([item[0]]))
    assert [value for _, value in by_key] == sorted(values)


TEXTS = st.text("ab012-: ", min_size=1, max_size=4)
ANY = st.one_of(
    TEXTS, *(st.integers(0, 900).flatmap(lambda n, s=spell: st.sampled_from(s(n))) for spell in KINDS.values())
)


@given(bounds=st.lists(ANY, min_size=2, max_size=2), values=st.lists(ANY, min_size=1, max_size=8))
@settings(max_examples=600, deadline=None)
def test_a_log_of_mixed_spellings_is_ordered_or_refused_with_two_examples(bounds: list[str], values: list[str]) -> None:
    """And what is ordered as a whole has the same splits one by one, as later runs ask for them."""
    try:
        config = logs(bounds)
    except ValidationError as error:
        assert re.search("cannot be ordered|before it begins", str(error))
        return
    try:
        split_of(config, *values)
    except UserError as error:
        assert re.search(r"\(such as .*\) and .* \(such as .*\) cannot be ordered\. (Write|Rename)", str(error))


@given(bounds=st.lists(ANY, min_size=2, max_size=2), values=st.lists(ANY, min_size=1, max_size=8, unique=True))
@settings(max_examples=300, deadline=None)
def test_the_advice_of_a_refusal_works(bounds: list[str], values: list[str]) -> None:
    """Bounds are written as the message says, or folders are moved away as it says, until the log has an order."""
    try:
        config = logs(bounds)
    except ValidationError:
        return
    for _ in range(len(values) + 1):
        try:
            config.order(values, is_whole_log=True)
            return
        except UserError as error:
            message = str(error)
        if like := re.search(r"in quotes, such as '(.*)'\.$", message):
            config = logs([like[1], like[1]])
            config.order(values, is_whole_log=True)
            return
        odd = re.search(r"Rename the folder dt=(.*), or move it out of the log\.$", message)
        assert odd is not None and odd[1] in values, message
        values = [value for value in values if value != odd[1]]
    raise AssertionError("the advice led nowhere")


@pytest.mark.parametrize(
    ("bounds", "values"),
    [
        ([1, 9], ["1", "one"]),
        ([1, 9], ["1", "1.5"]),
        ([1, 9], ["2026-01-01"]),
        (["2026-01-01", "2026-01-09"], ["2026-01-01", "latest"]),
        (["2026-01-01", "2026-01-09"], ["2026-02-30"]),
        (["2026-01-01", "2026-01-09"], ["2026-01-01", "2026-01-02 10"]),
        (["2026-01-01 00:00", "2026-01-09 00:00"], ["2026-01-01"]),
        (["00:00", "12:00"], ["09:00", "24"]),
        (["1", "20"], ["3", "x"]),
        (["1", "9"], ["5", "2026-01-01"]),
        (["1", "2026-01-01"], ["5"]),
        (["1", "9"], ["5", "7:30", "2026-01-01"]),
        ([20260101, 20260109], ["20260101", "2026010200"]),  # a day and an hour
        (["2026-02-01", "2026-2-31"], ["2026-02-27", "2026-05-01"]),  # as texts, May is before 2026-2-31
    ],
)
def test_mixtures_are_refused_with_two_examples(bounds: list[Any], values: list[str]) -> None:
    with pytest.raises(UserError, match=r"\(such as .*\) and .* \(such as .*\) cannot be ordered"):
        logs(bounds).order(values, is_whole_log=True)


@pytest.mark.parametrize(
    ("bounds", "value", "expected"),
    [
        (["2026-01-01", "2026-01-02"], "2026-01-02 23%3A59", "train"),  # a day includes its hours
        (["2026-01-01", "2026-01-02"], "2026-01-03T00", None),
        (["2026-01", "2026-02"], "2026-02-28", "train"),
        (["2026-01", "2026-02"], "20260301", None),
        ([20260101, 20260109], "2026-1-9", "train"),
        ([20260101, 20260109], "2026010923", "train"),  # a day includes its hours in every spelling
        ([20260101, 20260109], "202601092359", "train"),
        ([20260101, 20260109], "2026011000", None),
        (["2026-02-01", "2026-02-31"], "2026-02-28", "train"),
        (["2026-01-01", "20260109"], "20260110", None),
        (["0", "12"], "12:00", "train"),  # folders of hours
        (["a", "m"], "m", "train"),
        (["00", "7f"], "10", "train"),  # the first digits of a hash
        (["2026-W01", "2026-W09"], "2026-W05", "train"),
        (["2026-01-01 00%3A00", "2026-01-01 03%3A00"], "2026-01-01 03%3A00", "train"),  # spelt as the folder is
        (["1", "9"], "", None),
        (["A", "z"], "__HIVE_DEFAULT_PARTITION__", None),
    ],
)
def test_bounds_and_values(bounds: list[Any], value: str, expected: str | None) -> None:
    assert split_of(logs(bounds), value) == [expected]


@pytest.mark.parametrize("zero", ["0000-00-00", "0000-01-01", "1900-00-00"])
def test_a_date_that_does_not_exist_is_named_also_if_it_comes_first(zero: str) -> None:
    """Bounds like that folder would not select any other."""
    with pytest.raises(UserError, match=rf"Rename the folder dt={zero}, or move it out of the log\.$"):
        logs(["2026-01-01", "2026-01-09"]).order([zero, "2026-01-01", "2026-01-02"], is_whole_log=True)


@pytest.mark.parametrize(
    ("train", "test"),
    [(["v1", "v2"], ["v10", "v11"]), (["v2", "v10"], None), (["1.5", "2.5"], ["10.5", "10.5"])],
)
def test_bounds_whose_numbers_have_another_order_are_refused_with_advice_that_holds(
    train: list[str], test: list[str] | None
) -> None:
    with pytest.raises(ValidationError, match=r"compared character by character, so that .* with the same number of"):
        logs(train, test)

    def padded(bounds: list[str]) -> list[str]:
        return [re.sub("[0-9]+", lambda number: number[0].zfill(2), bound) for bound in bounds]

    logs(padded(train), None if test is None else padded(test))


def test_nested_folders_have_a_value_per_level() -> None:
    days = ["2024-01-02", "2024-1-02", "2024-02-01", "2023-12-31", "2024-__HIVE_DEFAULT_PARTITION__-01"]
    expected = ["train", "train", None, None, None]
    for train in (["2024-1-1", "2024-1-31"], [[2024, 1, 1], [2024, 1, 31]], ["2024/01/01", "2024/01/31"]):
        assert split_of(logs(train, partition=["year", "month", "day"]), *days) == expected
    hours = logs(["2024-01-01 22", "2024-01-02T03"], partition=["year", "month", "day", "hour"])
    assert split_of(hours, "2024-01-01-23", "2024-1-2-3", "2024-1-2-4") == ["train", "train", None]
    dates = logs(["2024-01-01/22", ["2024-01-02", "3"]], partition=["date", "hour"])
    assert split_of(dates, dates.value_of(["2024-01-02", "03"]), dates.value_of(["20240101", "7"])) == ["train", None]
    with pytest.raises(ValidationError, match=r"2024 of `splits` has 1 parts, but `partition` names 2 folders"):
        logs([2024, 2024], partition=["year", "month"])


@given(st.lists(st.lists(st.text("a-%2D5", min_size=1), min_size=3, max_size=3), min_size=1, max_size=9))
def test_nested_folders_are_identified_by_their_spelling(folders: list[list[str]]) -> None:
    config = logs(["a-a-a", "b-b-b"], partition=["x", "y", "z"])
    values = [config.value_of(parts) for parts in folders]
    assert [config.parts_of(value) for value in values] == folders


@pytest.mark.parametrize("partition", [[], ["year", "year"], ["year", "a/b"]])
def test_names_of_nested_folders_are_checked(partition: list[str]) -> None:
    with pytest.raises(ValidationError, match="partition"):
        logs([1, 1], partition=partition)
