"""The hints at texts that look like `id:weight` or like lists in brackets. No test here needs Ray."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.features.arrow_types import normal
from pipeline.features.base import TextCounts
from pipeline.features.multivalued import MultivaluedFeature
from pipeline.features.values import Column, Kind
from pipeline.preprocess.text_hints import report_texts
from tests.preprocess.logs import experiment


class Texts:
    def __init__(self, values: list[Any], type_: pa.DataType | None = None, kind: Kind = "text") -> None:
        self._values, self._kind = pa.array(values, type_ or pa.large_string()), kind

    def column(self, name: str) -> Column:
        return Column.of(normal(pa.chunked_array([self._values])))

    def id_kind(self, name: str) -> Kind:
        return self._kind


def tags(**keys: object) -> MultivaluedFeature:
    base = {"name": "tags", "column": "tags", "kind": "multivalued", "separator": "|", "dim": 4}
    return MultivaluedFeature.model_validate({**base, "ids": {"vocabulary": {}}, **keys})


def features(*given: dict[str, Any]) -> list[Any]:
    return list(experiment(Path("none"), features=list(given)).features)


@given(
    st.lists(st.tuples(st.text("abc/\u00e9", min_size=1), st.floats(width=32, allow_nan=False, allow_infinity=False)))
)
def test_numbers_after_a_colon_are_recognised(parts: list[tuple[str, float]]) -> None:
    text = " | ".join(f"{name}:{weight!r}" for name, weight in parts)
    found = tags().count_texts(Texts([None, text]))
    assert found is not None and (found.parts, found.weighted) == (len(parts), len(parts))


@pytest.mark.parametrize("part", ["a", "a:b", "a:", ":1", "a:1:2", "http://a", "a:nan", "a:0x1"])
def test_other_parts_are_not(part: str) -> None:
    assert tags().count_texts(Texts([part, f"{part}|b:1"])) == TextCounts(3, 1, 2, 0)


def test_a_warning_names_the_feature_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    feature = {"name": "tags", "column": "tags", "kind": "multivalued", "separator": "|", "dim": 4}
    sections = experiment(tmp_path, features=[{**feature, "ids": {"vocabulary": {}}}]).table_experiment
    report_texts(sections, [{"tags": TextCounts(50, 45)}, {"tags": TextCounts(50, 45)}])
    assert not caplog.messages  # nine in ten, not more
    report_texts(sections, [{"tags": TextCounts(50, 46)}, {"tags": TextCounts(50, 45)}, {}])
    (message,) = caplog.messages
    assert "feature tags (features.0): 91 of 100 parts of its texts look like `id:weight`" in message


@pytest.mark.parametrize("kind", ["multivalued", "sequence"])
def test_lists_and_sequences_are_recognised(kind: str) -> None:
    """Not only texts that are split: a list column, and a behaviour such as `item:seconds`."""
    keys = {"name": "tags", "column": "tags", "kind": kind, "ids": {"hash": 9}, "dim": 4}
    keys |= {"max_length": 5} if kind == "sequence" else {}
    (feature,) = features(keys)
    texts = Texts([["a:1", "b:2"], None, ["c"]], pa.list_(pa.string()))
    assert feature.count_texts(texts) == TextCounts(3, 2)
    assert feature.count_texts(Texts([[1], [2]], pa.list_(pa.int64()), "int")) is None
    (split,) = features({**keys, "separator": "|"})
    assert split.count_texts(Texts(["a:1|b:2"])) == TextCounts(2, 2, 1, 0)


def test_the_advice_fits_the_feature(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = {"column": "tags", "ids": {"hash": 9}, "dim": 4}
    kinds = {"split": {"separator": "|"}, "listed": {}, "seen": {"kind": "sequence", "max_length": 5}}
    given = [{**base, "name": name, "kind": "multivalued", **keys} for name, keys in kinds.items()]
    report_texts(experiment(tmp_path, features=given).table_experiment, [dict.fromkeys(kinds, TextCounts(1, 1))])
    advice = [
        "ids. Set features.0.weights to",
        "ids. Write each list as one text with a `separator`. Set features.1.we",
    ]
    for message, what in zip(caplog.messages, [*advice, "ids. This kind of feature has no weights"], strict=True):
        assert what in message
    features({**given[0], "weights": ":"}, {**given[1], "weights": ":", "separator": "|"})  # as the messages say


@pytest.mark.parametrize("text", ["[3, 7]", '["a", "b"]', " (1,2) ", "{1}", "[]", "['a'\n 'b']"])
def test_lists_in_brackets_are_named(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = tags(separator=",").count_texts(Texts([text, None]))
    assert found is not None and (found.texts, found.in_brackets) == (1, 1)
    others = tags(separator=",").count_texts(Texts(["3,7", "[a],b", "", "(a) b"]))
    assert others is not None and (others.texts, others.in_brackets) == (4, 0)
    sections = experiment(tmp_path, features=[{**tags().model_dump(exclude_none=True)}]).table_experiment
    report_texts(sections, [{"tags": TextCounts(texts=9, in_brackets=8)}])
    assert not caplog.messages
    report_texts(sections, [{"tags": found}])
    (message,) = caplog.messages
    assert "1 of 1 texts are lists in brackets, such as [3, 7]" in message and "Write the texts without" in message
