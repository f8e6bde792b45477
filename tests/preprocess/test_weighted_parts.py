"""The hint at texts whose parts look like `id:weight`. No test here needs Ray."""

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.features.multivalued import MultivaluedFeature
from pipeline.features.values import Column, Kind
from pipeline.preprocess.weighted_parts import report_weighted_parts
from tests.preprocess.logs import experiment


class Texts:
    def __init__(self, texts: list[str | None]) -> None:
        self._texts = texts

    def column(self, name: str) -> Column:
        return Column.of(pa.chunked_array([pa.array(self._texts, pa.large_string())]))

    def id_kind(self, name: str) -> Kind:
        return "text"


def tags(**keys: object) -> MultivaluedFeature:
    base = {"name": "tags", "column": "tags", "kind": "multivalued", "separator": "|", "dim": 4}
    return MultivaluedFeature.model_validate({**base, "ids": {"vocabulary": {}}, **keys})


@given(
    st.lists(st.tuples(st.text("abc/\u00e9", min_size=1), st.floats(width=32, allow_nan=False, allow_infinity=False)))
)
def test_numbers_after_a_colon_are_recognised(parts: list[tuple[str, float]]) -> None:
    text = " | ".join(f"{name}:{weight!r}" for name, weight in parts)
    assert tags().weighted_parts(Texts([None, text])) == (len(parts), len(parts))


@pytest.mark.parametrize("part", ["a", "a:b", "a:", ":1", "a:1:2", "http://a", "a:nan", "a:0x1"])
def test_other_parts_are_not(part: str) -> None:
    assert tags().weighted_parts(Texts([part, f"{part}|b:1"])) == (3, 1)


def test_a_warning_names_the_feature_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    feature = {"name": "tags", "column": "tags", "kind": "multivalued", "separator": "|", "dim": 4}
    sections = experiment(tmp_path, features=[{**feature, "ids": {"vocabulary": {}}}]).table_experiment
    report_weighted_parts(sections, [{"tags": (50, 45)}, {"tags": (50, 45)}])
    assert not caplog.messages  # nine in ten, not more
    report_weighted_parts(sections, [{"tags": (50, 46)}, {"tags": (50, 45)}, {}])
    (message,) = caplog.messages
    assert "feature tags (features.0): 91 of 100 parts of its texts look like `id:weight`" in message
