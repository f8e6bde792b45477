"""The pure functions: ids and lists from Arrow, hashes, summaries of numbers, distribution of rows over lanes."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.features import sketch
from pipeline.features.encoders import HashEncoder, QuantileEncoder, StandardizeEncoder, VocabularyEncoder
from pipeline.features.sketch import Moments, bucket_edges, merge, summarize
from pipeline.features.values import Column, as_ids, as_lists, count_values, hash_values, positions
from pipeline.preprocess import units
from pipeline.preprocess.discover import LogFile, LogPartition, PartitionFiles
from pipeline.preprocess.units import Unit, cut_units
from pipeline.preprocess.write import deal, unit_generator

numbers = st.lists(st.integers(-50, 50).map(lambda n: n / 4), min_size=1, max_size=80)


def ones(values: Any) -> np.ndarray:
    return np.ones(len(values), dtype=np.int64)


def test_hashes_never_change() -> None:
    """Tables and models made by an earlier version depend on these numbers."""
    texts = hash_values(pa.array(["", "a", "Grüße", "a"], pa.large_string()))
    assert texts.tolist() == [1760245841805064774, 13950350942979735504, 10773128178880131863, 13950350942979735504]
    assert hash_values(pa.array([0, 1, -1, 2**62])).tolist() == [
        0,
        6238072747940578789,
        13029008266876403067,
        1360429390938723525,
    ]


def test_the_hash_encoder_keeps_null_separate() -> None:
    ids = HashEncoder(5).encode(pa.array(["x", None, "x", "y"], pa.large_string()))
    assert ids.dtype == np.int32 and ids[1] == 0 and ids[0] == ids[2] and ids.min() == 0 and 2 <= ids[3] < 7
    assert HashEncoder(5).encode(pa.array([], pa.int64())).tolist() == []


def test_the_vocabulary_encoder_numbers_known_values() -> None:
    encoder = VocabularyEncoder(pa.array([7, 3, 9]))
    assert encoder.encode(pa.array([3, None, 4, 7, 9, 3])).tolist() == [3, 0, 1, 2, 4, 3]
    assert encoder.encode(pa.array([3])).tolist() == [3]  # fewer values than the vocabulary
    assert VocabularyEncoder(pa.array([], pa.int64())).encode(pa.array([3, None])).tolist() == [1, 0]


def test_number_encoders_bucket_and_standardise() -> None:
    values = pa.array([None, float("nan"), 1.0, 2.0, 5.0])
    assert QuantileEncoder(np.array([2.0, 4.0]), 3).encode(values).tolist() == [0, 0, 2, 3, 4]
    assert StandardizeEncoder(2.0, 0.5, log1p=False).encode(values).tolist() == [0, 0, -2, 0, 6]
    assert np.isfinite(StandardizeEncoder(0.0, 1e-9, log1p=False).encode(pa.array([1e300]))).all()


@pytest.mark.parametrize(
    ("array", "ids", "fractional"),
    [
        (pa.array([1, None, 300], pa.int16()), [1, None, 300], [0, 0, 0]),
        (pa.array([True, None, False]), [1, None, 0], [0, 0, 0]),
        (
            pa.array([1.0, float("nan"), None, 2.5, float("inf"), 1e30]),
            [1, None, None, None, None, None],
            [0, 0, 0, 1, 1, 1],
        ),
        (pa.array([2**64 - 1, 5], pa.uint64()), [-1, 5], [0, 0]),
        (pa.nulls(2), [None, None], [0, 0]),
    ],
)
def test_ids_may_have_every_type(array: pa.Array, ids: list[Any], fractional: list[int]) -> None:
    found, bad = as_ids(array, "int")
    assert found.type == pa.int64() and found.to_pylist() == ids and bad.tolist() == [bool(f) for f in fractional]


def test_chunks_may_have_different_dictionaries_and_nulls() -> None:
    chunks = [pa.array(["a", None, "b"]).dictionary_encode(), pa.array(["c", "a"]).dictionary_encode()]
    column = Column.of(pa.chunked_array(chunks))
    assert column.values.take(pa.array(column.rows)).to_pylist() == ["a", None, "b", "c", "a"]


lists_of_ids = st.lists(st.none() | st.lists(st.none() | st.integers(0, 9), max_size=6), max_size=12)


@given(lists_of_ids, st.integers(1, 4), st.sampled_from([pa.list_, pa.large_list]), st.integers(0, 3))
def test_lists_lose_nulls_then_all_but_the_last(values: list[Any], length: int, type_: Any, skip: int) -> None:
    array = pa.array([[99], *values], type_(pa.int32())).slice(min(skip, len(values)))  # slices have their own offsets
    whole = as_lists(array, "int", None)
    kept = [[item for item in items or [] if item is not None] for items in array.to_pylist()]
    assert whole.lengths.tolist() == [len(items) for items in kept]
    assert whole.items.to_pylist() == [item for items in kept for item in items]
    assert whole.dropped.tolist() == [len(a or []) - len(k) for a, k in zip(array.to_pylist(), kept, strict=True)]
    last = whole.last(length)
    assert last.lengths.tolist() == [len(items[-length:]) for items in kept]
    assert last.items.to_pylist() == [item for items in kept for item in items[-length:]]


def test_lists_of_fixed_size_and_split_texts_are_read() -> None:
    fixed = as_lists(pa.array([[1, None], None, [2, 3]], pa.list_(pa.int64(), 2)), "int", None)
    assert (fixed.lengths.tolist(), fixed.items.to_pylist(), fixed.dropped.tolist()) == (
        [1, 0, 2],
        [1, 2, 3],
        [1, 0, 0],
    )
    split = as_lists(pa.array([" a ,b", "", None, ",,c,"]), "text", ",")
    assert (split.lengths.tolist(), split.items.to_pylist()) == ([2, 0, 0, 1], ["a", "b", "c"])


@given(st.lists(st.none() | st.integers(0, 20), max_size=40), st.sets(st.integers(0, 30), max_size=30))
def test_positions_are_indices_in_the_vocabulary(values: list[Any], vocabulary: set[int]) -> None:
    ordered = sorted(vocabulary, reverse=True)
    found = positions(pa.array(values, pa.int64()), pa.array(ordered, pa.int64()))
    assert found.tolist() == [ordered.index(value) if value in vocabulary else -1 for value in values]


def test_count_values_sums_over_arrays() -> None:
    arrays = [pa.array(["a", None, "b"], pa.large_string()), pa.array(["b", "c"], pa.large_string())]
    counted = count_values(arrays, [np.array([1, 5, 2]), np.array([3, 0])])
    assert counted.to_pydict() == {"value": ["a", "b"], "count": [1, 5]}


@given(st.lists(numbers, min_size=1, max_size=8), st.sampled_from([2, 4, 8, 16]))
def test_merged_quantiles_equal_those_of_all_values(parts: list[list[float]], buckets: int) -> None:
    points = merge(summarize(np.array(part), ones(part)) for part in parts)
    whole = np.concatenate(parts)
    expected = np.unique(np.quantile(whole, np.arange(1, buckets) / buckets, method="inverted_cdf"))
    assert bucket_edges(points, buckets).tolist() == expected.tolist()


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.integers(2, 200))
def test_compressed_quantiles_are_close(seed: int, parts: int) -> None:
    rng = np.random.default_rng(seed)
    values = [rng.normal(size=300) for _ in range(parts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sketch, "MAX_POINTS", 128)
        points = merge(summarize(part, ones(part)) for part in values)
    assert len(points.values) <= 128
    whole = np.sort(np.concatenate(values))
    assert points.weights.sum() == len(whole)
    shares = np.searchsorted(whole, bucket_edges(points, 10), side="right") / len(whole)
    np.testing.assert_allclose(shares, np.arange(1, 10) / 10, atol=4 / 128)  # at most three levels, plus the edge


def test_quantiles_of_no_values_are_empty() -> None:
    assert bucket_edges(merge([]), 4).tolist() == []
    assert bucket_edges(summarize(np.array([1.0]), np.array([0])), 4).tolist() == []


@given(st.lists(numbers, min_size=1, max_size=8))
def test_combined_moments_equal_those_of_all_values(parts: list[list[float]]) -> None:
    total = Moments(0, 0.0, 0.0)
    for part in parts:
        total = total.combined(Moments.of(np.array(part), ones(part)))
    whole = np.concatenate(parts)
    assert total.count == len(whole)
    assert total.mean == pytest.approx(whole.mean(), abs=1e-9)
    assert total.deviation == pytest.approx(whole.std() or 1.0, abs=1e-9)


@given(st.integers(0, 300), st.sampled_from([1, 2, 8, 64]), st.integers(0, 2**32))
def test_dealing_gives_every_row_to_one_lane(rows: int, lanes: int, seed: int) -> None:
    kept = np.arange(rows) * 3
    order, lengths = deal(kept, lanes, np.random.default_rng(seed))
    assert sorted(order.tolist()) == kept.tolist()
    assert lengths.sum() == rows and len(lengths) == lanes and lengths.max() - lengths.min() <= 1


def test_lanes_with_an_extra_row_are_random() -> None:
    longest = [deal(np.arange(5), 4, unit_generator(0, _unit(number)))[1].argmax() for number in range(50)]
    assert set(longest) == {0, 1, 2, 3}
    assert unit_generator(-1, _unit(3)).integers(2**40) == unit_generator(-1, _unit(3)).integers(2**40)


def _unit(number: int) -> Unit:
    return Unit("train", "a day", number, "file", [0], 0, 1)


@given(st.lists(st.lists(st.integers(0, 30), max_size=6), max_size=4))
def test_units_cover_files_in_order(files: list[list[int]]) -> None:
    log_files = [LogFile(f"file-{i}", rows, pa.schema([])) for i, rows in enumerate(files)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "UNIT_ROWS", 40)
        cut = cut_units(PartitionFiles(LogPartition("train", "1"), log_files, []))
    assert [unit.number for unit in cut] == list(range(len(cut)))
    for file in log_files:
        mine = [unit for unit in cut if unit.file == file.path]
        groups = [group for unit in mine for group in unit.groups]
        assert groups == list(range(len(groups)))
        assert sum(unit.rows for unit in mine) == sum(file.group_rows)
        for unit in mine:
            assert unit.rows == sum(file.group_rows[group] for group in unit.groups) > 0
            assert unit.first_row == sum(file.group_rows[: unit.groups[0]])
            assert unit.rows <= 40 or len([g for g in unit.groups if file.group_rows[g]]) == 1
