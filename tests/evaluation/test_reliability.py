"""Reliability curves compared with numbers computed by hand, and properties that hold for any rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.logs import ScenarioConfig, TaskConfig
from pipeline.evaluation.reliability import BINS, reliability, reliability_of_tasks
from pipeline.evaluation.split_metrics import Predictions


def test_bins_of_equal_count_by_hand() -> None:
    curve = reliability(np.array([1, 0, 1, 1]), np.array([0.4, 0.1, 0.2, 0.3]), np.ones(4), bins=2)
    assert curve["predicted"] == pytest.approx([0.15, 0.35])
    assert curve["observed"] == pytest.approx([0.5, 1.0])
    assert curve["rows"] == [2, 2]


def test_equal_predictions_stay_together() -> None:
    # The middles of the two values' weights are at 3/8 and 7/8: one bin each, though 0.1 reaches into the second half.
    curve = reliability(np.array([0, 0, 1, 1]), np.array([0.1, 0.1, 0.1, 0.2]), np.ones(4), bins=2)
    assert curve["rows"] == [3, 1]
    assert curve["observed"] == pytest.approx([1 / 3, 1])
    constant = reliability(np.array([0, 1]), np.array([0.3, 0.3]), np.ones(2))
    assert (constant["observed"], constant["rows"]) == ([0.5], [2])


def test_weights_by_hand() -> None:
    # Weights 3 and 1 of 4 in all: (3 * 0.1 + 1 * 0.3) / 4, and 1 / 4 of the weight is positive.
    labels, predictions, weights = np.array([0, 1, 1]), np.array([0.1, 0.3, 0.2]), np.array([3, 1, 0])
    curve = reliability(labels, predictions, weights, bins=1)
    assert curve["predicted"] == pytest.approx([0.15])
    assert (curve["observed"], curve["rows"]) == ([0.25], [2])


def test_without_rows_there_is_no_bin() -> None:
    nothing = {"predicted": [], "observed": [], "rows": []}
    assert reliability(np.array([]), np.array([]), np.array([])) == nothing
    assert reliability(np.array([1.0]), np.array([0.5]), np.array([0.0])) == nothing


rows = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=60)


@settings(max_examples=80, deadline=None)
@given(rows, st.integers(1, 20))
def test_bins_contain_all_rows_in_order(drawn: list[tuple[int, int, int]], bins: int) -> None:
    labels, predictions, weights = np.array(drawn).T
    curve = reliability(labels, predictions / 10, weights, bins)
    assert sum(curve["rows"]) == np.count_nonzero(weights)
    assert len(curve["rows"]) <= min(bins, len(set(predictions[weights > 0])))
    assert curve["predicted"] == sorted(set(curve["predicted"]))
    repeated = reliability(
        np.repeat(labels, weights), np.repeat(predictions / 10, weights), np.ones(weights.sum()), bins
    )
    assert curve["predicted"] == pytest.approx(repeated["predicted"])
    assert curve["observed"] == pytest.approx(repeated["observed"])


def test_many_rows_make_all_bins_of_about_equal_count() -> None:
    rng = np.random.default_rng(0)
    curve = reliability(rng.random(3000) < 0.5, rng.random(3000), np.ones(3000))
    assert curve["rows"] == [3000 // BINS] * BINS


TASKS = [TaskConfig(name="click", column="c", kind="binary"), TaskConfig(name="value", column="v", kind="continuous")]
LEVELS = [
    ScenarioConfig(name="tab", column="t", values=[1, 0]),
    ScenarioConfig(name="user", column="u", values=["new", "old"], other="drop"),
]


def predictions_of(order: np.ndarray) -> Predictions:
    rng = np.random.default_rng(1)
    values = rng.random((300, 2)).astype(np.float32).round(1)
    scenarios = np.stack([rng.integers(0, 2, 300), rng.integers(0, 2, 300)], 1).astype(np.int32)
    weights = rng.choice([0, 0.3, 1], 300).astype(np.float32)
    return Predictions((values > 0.5).astype(np.float32)[order], values[order], weights[order], scenarios[order])


def test_a_curve_for_every_task_and_every_scenario_that_has_rows() -> None:
    everything = predictions_of(np.arange(300))
    curves = reliability_of_tasks(everything, TASKS, LEVELS)
    pairs = [f"tab={t}/user={u}" for t in (1, 0) for u in ("new", "old")]
    assert list(curves) == ["click", "value"]
    assert list(curves["click"]) == ["all", "tab=1", "tab=0", "user=new", "user=old", *pairs]  # without tab=other
    real = everything.weights > 0
    members = real & (everything.scenarios[:, 0] == 1)
    rows_of = {label: sum(curve["rows"]) for label, curve in curves["value"].items()}
    assert (rows_of["all"], rows_of["tab=0"]) == (real.sum(), members.sum())
    column = everything.predictions[members, 1]
    assert curves["value"]["tab=0"]["predicted"][0] == pytest.approx(column.min())
    empty = Predictions(*(np.empty((0, 2), np.float32),) * 2, np.empty(0, np.float32), np.empty((0, 2), np.int32))
    assert reliability_of_tasks(empty, TASKS, LEVELS) == {"click": {}, "value": {}}


def test_the_order_of_rows_changes_no_bit() -> None:
    curves = reliability_of_tasks(predictions_of(np.arange(300)), TASKS, LEVELS)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(300)
        assert reliability_of_tasks(predictions_of(order), TASKS, LEVELS) == curves
