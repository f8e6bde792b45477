"""Quantiles of labels within groups of durations, against numpy and scipy."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from pipeline.features import group_quantiles
from pipeline.features.group_quantiles import MOST_POINTS, GroupQuantiles, merged, sample
from pipeline.storage import empty_folder


def rows_of(durations: list[float], labels: list[float]) -> pa.Table:
    return sample(np.arange(len(labels), dtype=np.uint64), np.array(durations, np.float32), np.array(labels, float))


def test_groups_and_quantiles_by_hand() -> None:
    """Durations 1 to 4 in two groups of three rows; of the labels 0, 0, 8 the quantiles are 1/3, 1/3 and 5/6."""
    durations, labels = [1, 1, 2, 3, 4, 4], [0, 0, 8, 5, 7, 9]
    fitted = GroupQuantiles.fit(rows_of(durations, labels), 2)
    assert fitted.edges.tolist() == [2]
    found = fitted.quantiles_of(np.array(labels, float), np.array(durations, np.float32))
    np.testing.assert_allclose(found, [1 / 3, 1 / 3, 5 / 6, 1 / 6, 3 / 6, 5 / 6], rtol=1e-6)


@pytest.mark.parametrize("groups", [1, 3, 30])
def test_groups_have_equally_many_rows_and_quantiles_are_uniform_in_each(groups: int) -> None:
    rng = np.random.default_rng(0)
    durations = rng.lognormal(10, 1, 9000).astype(np.float32)
    labels = durations * rng.random(9000) ** 2  # longer videos are watched longer
    fitted = GroupQuantiles.fit(sample(rng.permutation(9000).astype(np.uint64), durations, labels), groups)
    group_of = np.searchsorted(fitted.edges, durations, side="left")
    assert np.bincount(group_of).tolist() == [9000 // groups] * groups
    found = fitted.quantiles_of(labels, durations)
    for group in range(groups):
        members = np.flatnonzero(group_of == group)
        expected = (rankdata(labels[members]) - 0.5) / len(members)  # "average": the mid-distribution function
        np.testing.assert_allclose(found[members], expected, atol=2 / min(MOST_POINTS, len(members)))
        assert found[members].mean() == pytest.approx(0.5, abs=1e-3)


durations_and_labels = st.lists(
    st.tuples(st.sampled_from([0.5, 1.0, 2.0, 7.0, 1e6]), st.integers(-3, 10_000)), min_size=1, max_size=60
)


@given(durations_and_labels, st.integers(1, 8))
def test_the_label_comes_back_from_its_quantile(pairs: list[tuple[float, int]], groups: int) -> None:
    durations, labels = np.array(pairs)[:, 0].astype(np.float32), np.array(pairs)[:, 1]
    fitted = GroupQuantiles.fit(rows_of(durations.tolist(), labels.tolist()), groups)
    quantiles = fitted.quantiles_of(labels, durations)
    assert ((quantiles > 0) & (quantiles < 1)).all()
    np.testing.assert_allclose(fitted.labels_of(quantiles, durations), labels, rtol=1e-4, atol=0.5)


def test_labels_and_durations_that_were_not_fitted_are_drawn_to_the_nearest() -> None:
    fitted = GroupQuantiles.fit(rows_of([10, 10, 20, 20], [1, 3, 5, 9]), 2)
    durations = np.array([1, 1, 99, 99, np.nan, 10], np.float32)
    quantiles = fitted.quantiles_of(np.array([-5.0, 2.0, 4.0, 100.0, 2.0, np.nan]), durations)
    np.testing.assert_allclose(quantiles, [0.25, 0.5, 0.25, 0.75, np.nan, np.nan])
    back = fitted.labels_of(np.array([0.0, 0.5, -7.0, 1.0, 0.5, np.nan]), durations)
    np.testing.assert_allclose(back, [1, 2, 5, 9, np.nan, np.nan])


def test_the_sample_does_not_depend_on_the_parts_and_is_a_random_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    keys = rng.integers(0, 2**63, 5000).astype(np.uint64)
    labels = rng.random(5000)
    whole = sample(keys, labels.astype(np.float32), labels)
    assert len(whole) == 5000
    monkeypatch.setattr(group_quantiles, "SAMPLE_ROWS", 700)
    small = sample(keys, labels.astype(np.float32), labels)
    parts = [sample(keys[i::7], labels[i::7].astype(np.float32), labels[i::7]) for i in (3, 0, 6, 1, 5, 2, 4)]
    assert merged(parts).equals(small) and len(small) == 700
    assert np.mean(small["label"].to_numpy()) == pytest.approx(0.5, abs=0.05)


def test_it_survives_its_file(tmp_path: Path) -> None:
    empty_folder(str(tmp_path))
    rng = np.random.default_rng(2)
    fitted = GroupQuantiles.fit(rows_of(rng.random(500).tolist(), rng.random(500).tolist()), 7)
    fitted.write(str(tmp_path), "quantiles-watch")
    again = GroupQuantiles.read(str(tmp_path), "quantiles-watch")
    np.testing.assert_array_equal(again.edges, fitted.edges)
    for one, two in ((again.labels, fitted.labels), (again.quantiles, fitted.quantiles)):
        assert len(one) == len(two) == 7
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a, b)
