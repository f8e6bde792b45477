"""Ids with weights in one text: parsing, faults, and the two columns of the feature table. No test here needs Ray."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.features.encoders import HashEncoder
from pipeline.features.multivalued import MultivaluedFeature
from pipeline.features.values import Column, Kind
from pipeline.table.settings import TableSettings
from tests.preprocess.logs import experiment

IDS = st.text(st.characters(blacklist_characters="|", blacklist_categories=["Cs"]), min_size=1).filter(str.strip)
WEIGHTS = st.just(0.0) | st.floats(2**-90, 2**90)
TAGS: dict[str, Any] = {"name": "tags", "column": "tags", "kind": "multivalued", "ids": {"hash": 1000}, "dim": 4}


class Texts:
    """Rows of one column of texts."""

    def __init__(self, texts: list[str | bytes | None]) -> None:
        self._texts = [text.encode() if isinstance(text, str) else text for text in texts]

    def column(self, name: str) -> Column:
        texts = pa.array(self._texts, pa.large_binary())
        return Column.of(pa.chunked_array([texts.view(pa.large_string())]))

    def id_kind(self, name: str) -> Kind:
        return "text"


def tags(**keys: Any) -> MultivaluedFeature:
    return MultivaluedFeature.model_validate({**TAGS, "separator": "|", "weights": ":", **keys})


@given(st.lists(st.lists(st.tuples(IDS, WEIGHTS))))
def test_ids_and_weights_come_back_as_written(rows: list[list[tuple[str, float]]]) -> None:
    texts = ["|".join(f"{id_} : {weight!r} " for id_, weight in row) for row in rows]
    lists = tags().read(pa.array(texts, pa.large_string()), "text")
    parts = [part for row in rows for part in row]
    assert lists.lengths.tolist() == [len(row) for row in rows]
    assert lists.items.to_pylist() == [id_.strip() for id_, _ in parts]
    assert lists.weights is not None and lists.weights.tolist() == [weight for _, weight in parts]
    assert reasons(texts) == [""] * len(texts)


def reasons(texts: list[Any]) -> list[str]:
    """The first reason why each row cannot be used."""
    found = [""] * len(texts)
    for wrong, reason in tags().faults(Texts(texts)):
        found = [old or (reason if flag else "") for old, flag in zip(found, wrong, strict=True)]
    return found


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ("x:", "a weight is not a number"),
        ("x:y", "a weight is not a number"),
        ("x:nan", "a weight is not a number"),
        ("x:1_0", "a weight is not a number"),
        ("x:0x1", "a weight is not a number"),
        ("x:1 2", "a weight is not a number"),
        (b"x:\xff", "a weight is not a number"),
        ("x:-1", "a weight is negative"),
        ("x:-inf", "a weight is negative"),
        ("x:inf", "a weight is infinite"),
        ("x:+Infinity", "a weight is infinite"),
        ("x:1e400", "a weight is infinite"),
        ("x:1e-46", "all weights above 0 are too small for float32"),
        ("x:0|y:1e-300", "all weights above 0 are too small for float32"),
        ("x:1|y:1e-300", ""),
        ("x:1e39", "the sum of the weights is too large for float32"),
        ("x:3e38|y:3e38", "the sum of the weights is too large for float32"),
        (":1", "an id before a weight is empty"),
        ("x", ""),
        ("x:0", ""),
        ("x:-0", ""),
        ("x:+1.", ""),
        ("x:.5e-3", ""),
        ("", ""),
        (None, ""),
        (b"\xff:1", ""),
    ],
)
def test_weights_that_cannot_be_used_are_named(part: Any, reason: str) -> None:
    assert reasons(["a:1|b", part, None]) == ["", reason, ""]


def test_the_last_mark_counts_and_a_part_without_one_has_weight_1() -> None:
    lists = tags().read(pa.array(["a:b:2|c| |d:0", None]), "text")
    assert lists.items.to_pylist() == ["a:b", "c", "d"] and lists.lengths.tolist() == [3, 0]
    assert lists.weights is not None and lists.weights.tolist() == [2, 1, 0]


@given(st.permutations(range(4)))
def test_ids_and_weights_are_two_columns_of_equal_lists(order: list[int]) -> None:
    rows, encoder = Texts(["a:2|b", None, "b:0.1", "c:1e400"]), HashEncoder(1000)
    encoded = tags().encode_rows(encoder, rows, np.array(order))
    plain = tags(weights=None).encode_rows(encoder, Texts(["a|b", None, "b", "c"]), np.array(order))
    assert encoded.values.equals(plain.values) and plain.weights is None and encoded.weights is not None
    expected = [[2, 1], [], [np.float32(0.1)], [np.inf]]
    assert encoded.weights.to_pylist() == [expected[row] for row in order]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"weights": ":"}, "there is no `separator`.*set `separator`, or remove `weights`"),
        ({"weights": "|", "separator": "|"}, "contains the `separator`.*set `weights` to the text between"),
    ],
)
def test_keys_that_do_not_fit_are_refused(tmp_path: Path, keys: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        experiment(tmp_path, features=[{**TAGS, **keys}])
    experiment(tmp_path, features=[{**TAGS, "separator": "|", "weights": ":"}])  # the advice of both


def test_settings_without_weights_are_those_of_earlier_versions(tmp_path: Path) -> None:
    def settings(**keys: Any) -> TableSettings:
        return TableSettings.of(experiment(tmp_path, features=[{**TAGS, "separator": "|", **keys}]).table_experiment)

    (feature,) = settings().document["features"]
    assert feature.keys() == {"name", "column", "ids", "shares", "kind", "separator"}
    assert settings(weights=None).fingerprint == settings().fingerprint != settings(weights=":").fingerprint


def test_ids_with_weights_that_share_a_table_of_whole_numbers_are_whole_numbers() -> None:
    """A part whose id is no whole number is left out with its weight, and its row is quarantined."""
    feature = MultivaluedFeature(
        name="tags", column="tags", kind="multivalued", shares="item", separator="|", weights=":"
    )
    lists = feature.read(pa.array(["3:0.5|-7:2", "x:4|5", None]), "int")
    assert lists.items.to_pylist() == [3, -7, 5] and lists.lengths.tolist() == [2, 1, 0]
    assert lists.weights is not None and lists.weights.tolist() == [0.5, 2.0, 1.0]
    assert lists.dropped.tolist() == [0, 1, 0]
