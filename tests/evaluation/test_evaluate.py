"""The evaluation of a split: its cells, its counts, and that the order of rows does not matter."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from models.inputs import TaskKind
from pipeline.config.logs import ScenarioConfig, TaskConfig
from pipeline.errors import UserError
from pipeline.evaluation.split_metrics import Predictions, evaluate, metric_value
from pipeline.metrics import functions as metrics
from pipeline.metrics.registry import METRICS, RowMetric, column_metrics

TASKS = [
    TaskConfig(name="click", column="is_click", kind="binary"),
    TaskConfig(name="watch_time", column="play_time", kind="continuous"),
]
TAB = ScenarioConfig(name="tab", column="tab", values=[1, 0])
USER = ScenarioConfig(name="user", column="is_new", values=["new", "old"], other="drop")


def make(rows: int, seed: int = 0, groups: bool = True) -> Predictions:
    rng = np.random.default_rng(seed)
    predictions = rng.random((rows, 2)).astype(np.float32)
    labels = np.stack([rng.random(rows) < predictions[:, 0], predictions[:, 1] + rng.normal(size=rows)], 1)
    return Predictions(
        labels=labels.astype(np.float32),
        predictions=predictions,
        weights=rng.choice([0, 0.3, 1], rows).astype(np.float32),
        scenarios=np.stack([rng.integers(0, 2, rows), rng.integers(0, 2, rows)], 1).astype(np.int32),
        groups=rng.integers(0, 9, rows) if groups else None,
    )


def take(predictions: Predictions, rows: np.ndarray) -> Predictions:
    return Predictions(
        predictions.labels[rows],
        predictions.predictions[rows],
        predictions.weights[rows],
        predictions.scenarios[rows],
        None if predictions.groups is None else predictions.groups[rows],
    )


def measured(kind: TaskKind, labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    return {
        metric.name: metric.function(labels, predictions, weights)
        for metric in column_metrics(kind)
        if isinstance(metric, RowMetric)
    }


def test_every_cell_is_measured_on_its_own_rows() -> None:
    predictions = make(400)
    evaluation = evaluate(predictions, TASKS, [TAB, USER])
    rows = predictions.valid()
    assert evaluation["rows"] == len(rows.weights) < 400
    cells = {
        "tab=1": rows.scenarios[:, 0] == 0,
        "tab=0": rows.scenarios[:, 0] == 1,
        "tab=other": rows.scenarios[:, 0] == 2,
        "user=new": rows.scenarios[:, 1] == 0,
        "user=old": rows.scenarios[:, 1] == 1,
        "tab=1/user=new": (rows.scenarios == [0, 0]).all(1),
        "tab=1/user=old": (rows.scenarios == [0, 1]).all(1),
        "tab=0/user=new": (rows.scenarios == [1, 0]).all(1),
        "tab=0/user=old": (rows.scenarios == [1, 1]).all(1),
    }
    click, watch_time = evaluation["tasks"]["click"], evaluation["tasks"]["watch_time"]
    assert list(click["scenarios"]) == list(watch_time["scenarios"]) == list(cells)
    for label, members in cells.items():
        part = take(rows, np.flatnonzero(members)).canonical()
        y, p, w = part.labels, part.predictions, part.weights
        assert part.groups is not None
        value, used, skipped = metrics.grouped_auc(y[:, 0], p[:, 0], w, part.groups)
        grouped = {"grouped_auc": value, "groups": used, "groups_skipped": skipped}
        counts = {"rows": members.sum(), "positives": y[:, 0].sum()}
        assert click["scenarios"][label] == {**measured("binary", y[:, 0], p[:, 0], w), **grouped, **counts}
        means = {"mean_label": metrics.mean(y[:, 1], w), "mean_prediction": metrics.mean(p[:, 1], w)}
        assert watch_time["scenarios"][label] == {
            **measured("continuous", y[:, 1], p[:, 1], w),
            "rows": members.sum(),
            **means,
        }
    assert click["auc"] == pytest.approx(metrics.auc(rows.labels[:, 0], rows.predictions[:, 0], rows.weights))
    finest = [click["scenarios"][label]["auc"] for label in cells if "/" in label]
    assert (click["macro_auc"], click["scenarios_undefined"]) == (pytest.approx(np.mean(finest)), 0)
    assert json.loads(json.dumps(evaluation, allow_nan=False)) == evaluation


def test_a_scenario_without_rows_is_listed_and_undefined() -> None:
    predictions = make(50, groups=False)
    predictions.scenarios = predictions.scenarios[:, :1]
    evaluation = evaluate(predictions, TASKS, [TAB])
    click = evaluation["tasks"]["click"]
    nothing = click["scenarios"]["tab=other"]
    assert (nothing.pop("rows"), nothing.pop("positives")) == (0, 0)
    assert {"auc", "log_loss", "calibration"} <= set(nothing) and set(nothing.values()) == {None}
    assert click["scenarios_undefined"] == 1
    assert click["macro_auc"] == pytest.approx(np.mean([click["scenarios"][t]["auc"] for t in ("tab=1", "tab=0")]))
    empty = evaluation["tasks"]["watch_time"]["scenarios"]["tab=other"]
    assert empty.pop("rows") == 0 and set(empty.values()) == {None}


@pytest.mark.parametrize("rows", [0, 1])
def test_no_row_and_one_row(rows: int) -> None:
    predictions = make(rows)
    predictions.weights[:] = 1
    evaluation = evaluate(predictions, TASKS, [TAB, USER])
    click = evaluation["tasks"]["click"]
    assert (evaluation["rows"], click["rows"], click["auc"], click["macro_auc"]) == (rows, rows, None, None)
    assert evaluation["tasks"]["watch_time"]["spearman"] is None
    assert len(click["scenarios"]) == 5 + rows  # a combination only where it occurs


def test_predictions_that_are_not_finite_are_an_error_unless_they_are_padding() -> None:
    predictions = make(20)
    predictions.weights[:] = 1
    predictions.predictions[3, 1] = np.nan
    with pytest.raises(UserError, match="1 of 20 predictions of task 'watch_time'"):
        evaluate(predictions, TASKS, [TAB, USER])
    predictions.weights[3] = 0
    assert evaluate(predictions, TASKS, [TAB, USER])["rows"] == 19


@st.composite
def any_predictions(draw: st.DrawFn) -> Predictions:
    rows = draw(st.integers(0, 25))
    values = st.floats(0, 1, width=32)
    labels = draw(arrays.arrays(np.float32, (rows, 2), elements=values))
    labels[:, 0] = labels[:, 0].round()
    return Predictions(
        labels=labels,
        predictions=draw(arrays.arrays(np.float32, (rows, 2), elements=values)),
        weights=draw(arrays.arrays(np.float32, rows, elements=values)),
        scenarios=draw(arrays.arrays(np.int32, (rows, 2), elements=st.integers(0, 1))),
        groups=draw(arrays.arrays(np.int64, rows, elements=st.integers(0, 3))),
    )


@settings(max_examples=80, deadline=None)
@given(any_predictions(), st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_workers_and_the_order_of_rows_change_no_bit(predictions: Predictions, seed: int, workers: int) -> None:
    order = np.random.default_rng(seed).permutation(len(predictions.weights))
    shards = [take(predictions, order[worker::workers]) for worker in range(workers)]
    merged = Predictions.concatenate(shards)
    assert evaluate(merged, TASKS, [TAB, USER]) == evaluate(predictions, TASKS, [TAB, USER])


def test_the_order_of_many_rows_changes_no_bit() -> None:
    predictions = make(5000)
    predictions.weights *= np.random.default_rng(1).random(5000).astype(np.float32)
    evaluation = evaluate(predictions, TASKS, [TAB, USER])
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(5000)
        assert evaluate(take(predictions, order), TASKS, [TAB, USER]) == evaluation


def test_parts_with_and_without_groups_do_not_mix() -> None:
    with pytest.raises(ValueError, match="1 of 2 parts have groups"):
        Predictions.concatenate([make(3), make(3, groups=False)])
    assert Predictions.concatenate([make(3, groups=False), make(0, groups=False)]).groups is None


@pytest.fixture(scope="module")
def evaluation() -> dict[str, Any]:
    return evaluate(make(200, groups=False), TASKS, [TAB, USER])


def test_every_metric_of_an_evaluation_has_a_direction(evaluation: dict[str, Any]) -> None:
    rescaled = [TASKS[0], TASKS[1].model_copy(update={"scale": 0.1})]
    with_groups = evaluate(make(200), rescaled, [TAB, USER])
    about = {"kind", "rows", "positives", "groups", "groups_skipped", "scenarios", "scenarios_undefined"}
    about |= {"mean_label", "mean_prediction", "mean_label_log_unit", "mean_prediction_log_unit"}
    assert {key for cell in with_groups["tasks"].values() for key in cell} - about == set(METRICS)


def test_metric_value(evaluation: dict[str, Any]) -> None:
    assert metric_value(evaluation, "click.auc") == evaluation["tasks"]["click"]["auc"]
    assert metric_value(evaluation, "watch_time.gini") == evaluation["tasks"]["watch_time"]["gini"]
    assert metric_value(evaluate(make(0), TASKS, [TAB, USER]), "click.auc") is None


@pytest.mark.parametrize("metric", ["click.grouped_auc", "clicks.auc", "click.rmse", "auc"])
def test_a_metric_that_was_not_measured_is_an_error_with_the_valid_names(
    evaluation: dict[str, Any], metric: str
) -> None:
    with pytest.raises(UserError, match=rf"'{metric}' in the evaluation; use one of click\.auc, .*watch_time\.gini"):
        metric_value(evaluation, metric)


@pytest.mark.parametrize(
    ("metric", "message"),
    [("click.accuracy", "There is no metric"), ("click.calibration", "does not rank models")],
)
def test_a_metric_that_does_not_rank_is_an_error(evaluation: dict[str, Any], metric: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        metric_value(evaluation, metric)
