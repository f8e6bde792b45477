"""Evaluation of rows that have weights, or no label of a task."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.logs import ScenarioConfig, TaskConfig
from pipeline.errors import UserError
from pipeline.evaluation.evaluation import parse_evaluation
from pipeline.evaluation.log_unit import LogUnit
from pipeline.evaluation.predictions import PredictedBatch
from pipeline.evaluation.reliability import reliability_of_tasks
from pipeline.evaluation.split_metrics import Predictions, evaluate, metric_value
from pipeline.report.tables import metric_tables
from pipeline.report.text import format_evaluation
from pipeline.scoring.prediction_files import prediction_table
from tests import synthetic

TASKS = [
    TaskConfig(name="click", column="c", kind="binary"),
    TaskConfig(name="value", column="v", kind="continuous", transform="log1p"),
]
TAB = [ScenarioConfig(name="tab", column="t", values=[0, 1])]


def predictions(rows: int, seed: int, only: list[int]) -> Predictions:
    """Whole weights; click exists in the tabs of `only`, value in two of three rows."""
    rng = np.random.default_rng(seed)
    scenarios = rng.integers(0, 3, (rows, 1)).astype(np.int32)
    labels = np.stack([rng.integers(0, 2, rows), rng.integers(0, 4, rows)], axis=1).astype(np.float32)
    labels[~np.isin(scenarios[:, 0], only), 0] = np.nan
    labels[rng.random(rows) < 1 / 3, 1] = np.nan
    weights = np.where(np.isnan(labels), 0, rng.integers(0, 4, (rows, 2))).astype(np.float32)
    scores = (rng.integers(1, 20, (rows, 2)) / 20).astype(np.float32)
    return Predictions(labels, scores, np.ones(rows, np.float32), scenarios, rng.integers(0, 3, rows), weights)


def approx(value: float | None) -> object:
    return None if value is None else pytest.approx(value, rel=1e-6, abs=1e-9)


def repeated(rows: Predictions, column: int) -> Predictions:
    """Each row as often as it counts for one task."""
    assert rows.task_weights is not None
    times = rows.task_weights[:, column].astype(int)
    index = np.repeat(np.arange(len(times)), times)
    assert rows.groups is not None
    plain = rows.labels[index].copy()
    plain[:, 1 - column] = 0
    return Predictions(plain, rows.predictions[index], rows.weights[index], rows.scenarios[index], rows.groups[index])


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 60), seed=st.integers(0, 10_000), only=st.sets(st.integers(0, 2)))
def test_metrics_and_curves_are_those_of_repeated_rows_with_a_label(rows: int, seed: int, only: set[int]) -> None:
    """With the same smearing factors: how far they are drawn to coarser scenarios depends on the number of rows."""
    given_rows = predictions(rows, seed, sorted(only))
    found = evaluate(given_rows, TASKS, TAB)
    curves = reliability_of_tasks(given_rows, TASKS, TAB)
    for column, task in enumerate(TASKS):
        plain = repeated(given_rows, column)
        expected = evaluate(plain, TASKS, TAB, found["smearing"])["tasks"][task.name]
        measured = found["tasks"][task.name]
        for cell, other in [
            (measured, expected),
            *((measured["scenarios"][label], expected["scenarios"][label]) for label in TAB[0].labels),
        ]:
            counts = {"rows", "weight", "positives", "scenarios", "kind", "groups", "groups_skipped"}
            for name in cell.keys() - counts:
                assert cell[name] == approx(other[name]), name
            if "weight" in cell:
                assert cell["weight"] == other["rows"]
        for label, curve in reliability_of_tasks(plain, TASKS, TAB)[task.name].items():
            assert curves[task.name][label]["predicted"] == pytest.approx(curve["predicted"])
            assert curves[task.name][label]["observed"] == pytest.approx(curve["observed"])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_order_of_rows_changes_no_bit(seed: int) -> None:
    rows = predictions(40, seed, [1])
    order = np.random.default_rng(seed).permutation(40)
    assert evaluate(rows._take(order), TASKS, TAB) == evaluate(rows, TASKS, TAB)


def test_a_task_that_a_scenario_does_not_have_is_undefined_there() -> None:
    rows = predictions(300, 0, [1])
    evaluation = evaluate(rows, TASKS, TAB)
    assert evaluation["rows"] == 300
    click = evaluation["tasks"]["click"]
    assert click["rows"] == click["scenarios"]["tab=1"]["rows"] == np.count_nonzero(~np.isnan(rows.labels[:, 0]))
    for label in ("tab=0", "tab=other"):
        cell = click["scenarios"][label]
        assert (cell["rows"], cell["weight"], cell["positives"]) == (0, 0.0, 0)
        assert all(cell[name] is None for name in ("auc", "log_loss", "calibration"))
    assert click["scenarios_undefined"] == 2 and click["macro_auc"] == click["scenarios"]["tab=1"]["auc"]
    assert reliability_of_tasks(rows, TASKS, TAB)["click"].keys() == {"all", "tab=1"}
    assert metric_value(evaluation, "click.auc") is not None
    shown = format_evaluation(parse_evaluation({**evaluation, "split": "test"}))
    assert "undefined: no rows with a label" in shown and " weight" in shown
    table = metric_tables(parse_evaluation({**evaluation, "split": "test"}))[0]
    assert table.columns[-2:] == ["rows", "weight"] and table.rows["tab=0"][-2].text == "0"
    assert table.has_undefined


def test_weights_are_shown_only_where_a_row_with_a_label_has_one() -> None:
    rows = predictions(50, 1, [0, 1])
    rows.task_weights = (~np.isnan(rows.labels)).astype(np.float32)
    assert "weight" not in evaluate(rows, TASKS, TAB)["tasks"]["click"]


def test_a_task_without_any_label_is_undefined() -> None:
    evaluation = evaluate(predictions(50, 1, []), TASKS, TAB)
    assert evaluation["tasks"]["click"]["rows"] == 0 and metric_value(evaluation, "click.auc") is None


def test_only_predictions_that_a_metric_reads_must_be_finite() -> None:
    rows = predictions(50, 1, [0, 1])
    rows.predictions[np.isnan(rows.labels)] = np.inf
    evaluate(rows, TASKS, TAB)
    rows.predictions[:, 0] = np.inf
    with pytest.raises(UserError, match="of task 'click' are not finite"):
        evaluate(rows, TASKS, TAB)


def test_a_row_without_a_label_has_a_prediction_and_no_label_in_prediction_files(tmp_path: Path) -> None:
    experiment = synthetic.experiment(tmp_path, tasks=[task.model_dump() for task in TASKS])
    rows = predictions(30, 2, [1])
    rows.scenarios = rows.scenarios % 2
    units = [LogUnit(task, experiment.scenarios, {}) for task in experiment.tasks]
    table = prediction_table(PredictedBatch(rows, None, None), experiment, units)  # type: ignore[arg-type]
    for k, task in enumerate(TASKS):
        labels = table[f"label_{task.name}"].to_pylist()
        assert [label is None for label in labels] == np.isnan(rows.labels[:, k]).tolist()
        expected = task.to_log_unit(rows.labels[:, k])
        assert [label for label in labels if label is not None] == expected[~np.isnan(expected)].tolist()
        assert table[f"prediction_{task.name}"].null_count == 0
