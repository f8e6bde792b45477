"""Metrics compared with scikit-learn, scipy and numbers computed by hand."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from pipeline.metrics import functions as metrics
from pipeline.metrics.registry import RowMetric, metrics_of

CONTINUOUS = [metric.function for metric in metrics_of("continuous") if isinstance(metric, RowMetric)]
BINARY = [metric.function for metric in metrics_of("binary") if isinstance(metric, RowMetric)]


def binary_rows(seed: int, rows: int = 500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities with many ties, and weights, some of them 0."""
    rng = np.random.default_rng(seed)
    probabilities = (rng.integers(0, 40, rows) / 40).astype(np.float32)
    labels = (rng.random(rows) < 0.2 + 0.5 * probabilities).astype(np.float32)
    return labels, probabilities, rng.choice([0, 0.5, 1, 3.7], rows).astype(np.float32)


def continuous_rows(seed: int, rows: int = 500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and predictions, both with ties, and weights."""
    rng = np.random.default_rng(seed)
    labels = np.round(rng.exponential(2, rows), 1).astype(np.float32)
    predictions = np.round(labels / 2 + rng.normal(size=rows), 1).astype(np.float32)
    return labels, predictions, rng.choice([0.5, 1, 3.7], rows).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_binary_metrics_equal_those_of_scikit_learn(seed: int) -> None:
    y, p, w = binary_rows(seed)
    assert metrics.auc(y, p, w) == pytest.approx(sk.roc_auc_score(y, p, sample_weight=w), abs=1e-12)
    assert metrics.log_loss(y, p, w) == pytest.approx(sk.log_loss(y, p, sample_weight=w), rel=1e-6)
    assert metrics.calibration(y, p, w) == pytest.approx(np.average(p, weights=w) / np.average(y, weights=w))


def test_log_loss_of_saturated_probabilities_is_finite() -> None:
    y, p, w = np.array([0.0, 1.0]), np.array([1, 1], np.float32), np.ones(2)
    assert metrics.log_loss(y, p, w) == pytest.approx(-np.log(np.finfo(np.float32).eps) / 2, rel=1e-6)
    assert metrics.log_loss(y[:1], 1 - p[:1], w[:1]) == pytest.approx(0, abs=1e-6)  # one class, yet defined


def test_auc_by_hand() -> None:
    y, s = np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])
    assert metrics.auc(y, s, np.ones(4)) == 0.75
    assert metrics.auc(y, np.ones(4), np.ones(4)) == 0.5
    assert metrics.auc(y, s, np.array([3, 1, 1, 1])) == 7 / 8


@pytest.mark.parametrize("label", [0, 1])
def test_auc_of_one_class_is_undefined(label: int) -> None:
    y, s = np.full(5, label), np.arange(5) / 5
    assert metrics.auc(y, s, np.ones(5)) is None
    mixed = np.append(y, 1 - label)
    assert metrics.auc(mixed, np.append(s, 0.5), np.array([1, 1, 1, 1, 1, 0])) is None  # the other class has weight 0


@pytest.mark.parametrize("seed", range(3))
def test_grouped_auc_equals_a_loop_over_groups(seed: int) -> None:
    y, p, w = binary_rows(seed, 800)
    groups = np.random.default_rng(seed).integers(-100, 100, 800) ** 3
    aucs, sizes, skipped = [], [], 0
    rows = pd.DataFrame({"y": y, "p": p, "w": w.astype(np.float64), "group": groups})
    for _, group in rows[rows.w > 0].groupby("group"):
        if group.y.nunique() == 2:
            aucs.append(sk.roc_auc_score(group.y, group.p, sample_weight=group.w))
            sizes.append(group.w.sum())
        else:
            skipped += 1
    assert skipped > 10 and len(aucs) > 50
    value, used, left_out = metrics.grouped_auc(y, p, w, groups)
    assert value == pytest.approx(np.average(aucs, weights=sizes), abs=1e-12)
    assert (used, left_out) == (len(aucs), skipped)


def test_grouped_auc_without_a_usable_group() -> None:
    none = np.array([])
    assert metrics.grouped_auc(none, none, none, none.astype(np.int64)) == (None, 0, 0)
    y, s, groups = np.array([0, 1]), np.array([0.2, 0.3]), np.array([7, 8])
    assert metrics.grouped_auc(y, s, np.ones(2), groups) == (None, 0, 2)


@pytest.mark.parametrize("seed", range(5))
def test_continuous_metrics_equal_those_of_scikit_learn_and_scipy(seed: int) -> None:
    y, p, w = (values.astype(np.float64) for values in continuous_rows(seed))
    mean = np.average(y, weights=w)
    rmse, mae = sk.mean_squared_error(y, p, sample_weight=w) ** 0.5, sk.mean_absolute_error(y, p, sample_weight=w)
    assert metrics.rmse(y, p, w) == pytest.approx(rmse)
    assert metrics.mae(y, p, w) == pytest.approx(mae)
    assert metrics.nrmse(y, p, w) == pytest.approx(rmse / np.cov(y, aweights=w, ddof=0) ** 0.5)
    assert metrics.nmae(y, p, w) == pytest.approx(mae / np.average(np.abs(y - mean), weights=w))
    assert metrics.mean(y, w) == pytest.approx(mean)
    assert metrics.calibration(y, p, w) == pytest.approx(np.average(p, weights=w) / mean)
    assert metrics.spearman(y, p, np.ones(len(y))) == pytest.approx(stats.spearmanr(y, p).statistic, abs=1e-12)


def test_the_naive_predictor_has_errors_of_one() -> None:
    y, _, w = continuous_rows(0)
    naive = np.full(len(y), metrics.mean(y, w))
    assert metrics.nrmse(y, naive, w) == pytest.approx(1)
    assert metrics.nmae(y, naive, w) == pytest.approx(1)
    assert metrics.calibration(y, naive, w) == pytest.approx(1)


def test_gini_by_hand() -> None:
    ones = np.ones(4)
    y = np.array([1, 2, 3, 4])
    assert metrics.normalised_gini(y, y * 10, ones) == 1
    assert metrics.normalised_gini(y, -y, ones) == -1
    assert metrics.normalised_gini(y, ones, ones) == 0
    # Descending by prediction the amounts are 3, 4, 1, 2: cumulative shares .3 .7 .8 1, Gini 2.8/4 - 5/8 = 0.075.
    # Descending by amount 4, 3, 2, 1: .4 .7 .9 1, Gini 3/4 - 5/8 = 0.125.
    assert metrics.normalised_gini(y, np.array([2, 1, 4, 3]), ones) == pytest.approx(0.075 / 0.125)
    # 4 and 3 tied share .7 evenly: .35 .7 .9 1, Gini 2.95/4 - 5/8 = 0.1125.
    assert metrics.normalised_gini(y, np.array([1, 2, 3, 3]), ones) == pytest.approx(0.1125 / 0.125)


def lorenz_gini(labels: np.ndarray, by: np.ndarray, weights: np.ndarray) -> float:
    """Twice the area between the diagonal and the Lorenz curve, computed from its definition."""
    rows = pd.DataFrame({"by": by, "amount": labels * weights, "weight": weights}, dtype=np.float64)
    ties = rows.groupby("by").sum().sort_index(ascending=False)
    population = np.concatenate(([0], np.cumsum(ties.weight) / ties.weight.sum()))
    amount = np.concatenate(([0], np.cumsum(ties.amount) / ties.amount.sum()))
    return 2 * float(np.trapezoid(amount - population, population))


@pytest.mark.parametrize("seed", range(3))
def test_gini_is_the_area_under_the_lorenz_curve(seed: int) -> None:
    y, p, w = continuous_rows(seed)
    expected = lorenz_gini(y, p, w) / lorenz_gini(y, y, w)
    assert metrics.normalised_gini(y, p, w) == pytest.approx(expected)


def test_gini_of_a_binary_label_is_two_auc_minus_one() -> None:
    y, p, w = binary_rows(3)
    assert metrics.normalised_gini(y, p, w) == pytest.approx(2 * metrics.auc(y, p, w) - 1)


def test_undefined_metrics_are_none() -> None:
    none = np.array([])
    assert {metric(none, none, none) for metric in [*CONTINUOUS, *BINARY]} == {None}
    assert metrics.mean(none, none) is None
    varied, ones = np.array([0.1, 0.2, 0.3]), np.ones(3)
    constant = np.full(3, 0.1)
    weights = np.array([0.3, 0.5, 0.7])  # with which the rounded variance of the constant is not 0
    for metric in (metrics.nrmse, metrics.nmae, metrics.spearman, metrics.normalised_gini):
        assert metric(constant, varied, weights) is None
        assert metric(varied[:1], varied[:1], ones[:1]) is None
    assert metrics.spearman(varied, constant, weights) is None
    assert metrics.calibration(np.zeros(3), varied, ones) is None


small_rows = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 6), st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=30
)


def columns(rows: list[tuple[int, int, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores in (0, 1), weights (some 0) and groups or amounts."""
    labels, scores, weights, others = np.array(rows).T
    return labels, (scores + 1) / 8, weights, others


@settings(max_examples=60, deadline=None)
@given(small_rows)
def test_auc_is_invariant_under_monotone_maps(rows: list[tuple[int, int, int, int]]) -> None:
    y, s, w, groups = columns(rows)
    assert metrics.auc(y, s, w) == metrics.auc(y, np.exp(5 * s) - 3, w)
    assert metrics.grouped_auc(y, s, w, groups) == metrics.grouped_auc(y, s**3, w, groups)


@settings(max_examples=60, deadline=None)
@given(small_rows)
def test_an_integer_weight_equals_copies_of_the_row(rows: list[tuple[int, int, int, int]]) -> None:
    y, s, w, others = columns(rows)
    ones = np.ones(w.sum())
    for metric, labels in [(m, y) for m in BINARY] + [(m, others) for m in CONTINUOUS]:
        repeated = metric(np.repeat(labels, w), np.repeat(s, w), ones)
        assert metric(labels, s, w) == (None if repeated is None else pytest.approx(repeated, abs=1e-9))
    weighted, repeated_groups = (
        metrics.grouped_auc(y, s, w, others),
        metrics.grouped_auc(np.repeat(y, w), np.repeat(s, w), ones, np.repeat(others, w)),
    )
    assert weighted[1:] == repeated_groups[1:]
    assert weighted[0] == (None if repeated_groups[0] is None else pytest.approx(repeated_groups[0]))
