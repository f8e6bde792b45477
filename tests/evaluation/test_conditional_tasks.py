"""P(task | after): metrics over the rows where the task before it happened, and a column of the prediction files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from jobs import predict
from pipeline.checkpoint.choice import LATEST
from pipeline.config.conditional_tasks import conditional_tasks, with_conditional_tasks
from pipeline.config.experiment import Experiment
from pipeline.config.logs import ScenarioConfig, TaskConfig
from pipeline.errors import UserError
from pipeline.evaluation.evaluation import read_evaluation
from pipeline.evaluation.predictions import add_conditional_tasks
from pipeline.evaluation.reliability import reliability_of_tasks
from pipeline.evaluation.split_metrics import Predictions, evaluate
from pipeline.report.page import write_report
from pipeline.report.text import format_evaluation
from pipeline.run_folder import evaluation_file
from pipeline.scoring.checkpoint_evaluation import evaluate_on_worker
from pipeline.training.metrics_log import flatten
from tests import synthetic
from tests.training.runs import continued, metrics, new_run, run_on
from tests.workers import WorkerPool, one_worker

TASKS = [
    TaskConfig(name="click", column="c", kind="binary"),
    TaskConfig(name="buy", column="b", kind="binary", after="click"),
    TaskConfig(name="spent", column="s", kind="continuous", after="buy"),
    TaskConfig(name="rate", column="r", kind="binary", after="buy"),
]
TAB = ScenarioConfig(name="tab", column="tab", values=[0, 1, 2], other="drop")
NAN = np.float32(np.nan)


def test_names() -> None:
    """A continuous task is a regression over all rows, so there is no conditional one."""
    assert [task.name for task in with_conditional_tasks(TASKS)] == [
        *("click", "buy", "spent", "rate"),
        *("buy_given_click", "rate_given_buy"),
    ]
    assert [(part.task, part.after) for part in conditional_tasks(TASKS)] == [(1, 0), (3, 1)]
    assert conditional_tasks(TASKS[:1]) == [] and with_conditional_tasks(TASKS[:1]) == TASKS[:1]


def joined(labels: Any, given: Any, weights: Any = None, scenarios: Any = 0) -> Predictions:
    """Rows with labels of click, buy, spent and rate, and with P(buy | click) and P(rate | buy)."""
    labels = np.array(labels, np.float32).reshape(-1, 4)
    rows = Predictions(
        labels=labels,
        predictions=np.full_like(labels, 0.5),
        weights=np.ones(len(labels), np.float32),
        scenarios=np.broadcast_to(np.array(scenarios, np.int32), len(labels)).reshape(-1, 1).copy(),
        task_weights=None if weights is None else np.array(weights, np.float32).reshape(-1, 4),
    )
    return add_conditional_tasks(rows, np.array(given, np.float32).reshape(-1, 2), conditional_tasks(TASKS))


def evaluated(rows: Predictions) -> dict[str, Any]:
    tasks: dict[str, Any] = evaluate(rows, with_conditional_tasks(TASKS), [TAB])["tasks"]
    return tasks


def test_numbers_by_hand() -> None:
    """Clicked: rows 0 to 3, of which 0 and 1 bought with .8 and .3; row 4 bought without a click and is left out.

    Of the four pairs of a sale and none, .8 is above .4 and .1, .3 above .1: AUC 3/4. Predicted sales 1.6, observed 2.
    """
    labels = [[1, 1, 3, 1], [1, 1, 2, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]]
    given = [[0.8, 0.9], [0.3, 0.2], [0.4, 0.5], [0.1, 0.5], [0.99, 0.6], [0.7, 0.5]]
    tasks = evaluated(joined(labels, given, scenarios=[0, 1, 0, 1, 1, 0]))
    buy, rate = tasks["buy_given_click"], tasks["rate_given_buy"]
    assert (buy["kind"], buy["rows"], buy["positives"]) == ("binary", 4, 2)
    assert buy["auc"] == 0.75 and buy["calibration"] == pytest.approx(1.6 / 2)
    assert buy["log_loss"] == pytest.approx(-np.log([0.8, 0.3, 0.6, 0.9]).mean())
    assert [buy["scenarios"][f"tab={tab}"]["rows"] for tab in (0, 1, 2)] == [2, 2, 0]
    assert buy["scenarios"]["tab=0"]["calibration"] == pytest.approx(1.2)
    assert buy["scenarios"]["tab=2"]["auc"] is None
    assert (rate["rows"], rate["positives"], rate["auc"]) == (3, 2, 1.0)
    assert tasks["buy"]["rows"] == 6


def test_rows_without_a_label_of_either_task_are_left_out() -> None:
    labels = [[1, NAN, 0, 0], [NAN, 1, 0, 0], [1, 1, 0, NAN], [1, 0, 0, 1]]
    weights = [[1, 0, 1, 1], [0, 1, 1, 1], [2, 3, 1, 0], [1, 1, 1, 1]]
    tasks = evaluated(joined(labels, [[0.5, 0.5]] * 4, weights))
    buy, rate = tasks["buy_given_click"], tasks["rate_given_buy"]
    assert (buy["rows"], buy["weight"], buy["calibration"]) == (2, 4.0, pytest.approx(2 / 3))
    assert (rate["rows"], rate["auc"], rate["log_loss"]) == (1, None, pytest.approx(np.log(2)))


def test_undefined_where_the_task_before_never_happened() -> None:
    tasks = evaluated(joined([[0, 0, 0, 0]] * 3, [[0.5, 0.5]] * 3))
    for name in ("buy_given_click", "rate_given_buy"):
        cell = tasks[name]
        assert (cell["rows"], cell["positives"]) == (0, 0)
        assert {cell[metric] for metric in ("auc", "log_loss", "calibration", "macro_auc")} == {None}


@st.composite
def any_rows(draw: st.DrawFn) -> Predictions:
    rng, rows = np.random.default_rng(draw(st.integers(0, 2**32 - 1))), draw(st.integers(0, 30))
    labels = rng.integers(0, 2, (rows, 4)).astype(np.float32)
    weights = rng.choice([0.5, 1, 2], (rows, 4)) if draw(st.booleans()) else None
    if weights is not None and draw(st.booleans()):
        missing = rng.random((rows, 4)) < 0.2
        labels[missing], weights[missing] = NAN, 0
    return joined(labels, rng.choice([0.1, 0.3, 0.35, 0.8], (rows, 2)), weights, rng.integers(0, 3, rows))


@settings(max_examples=150, deadline=None)
@given(any_rows())
def test_metrics_are_those_of_scikit_learn_on_the_selected_rows(rows: Predictions) -> None:
    tasks = evaluated(rows)
    for name, column, task, after in (("buy_given_click", 4, 1, 0), ("rate_given_buy", 5, 3, 1)):
        for label in ("all", *TAB.labels):
            cell = tasks[name] if label == "all" else tasks[name]["scenarios"][label]
            chosen = (rows.labels[:, after] == 1) & ~np.isnan(rows.labels[:, task])
            if label != "all":
                chosen &= rows.scenarios[:, 0] == TAB.labels.index(label)
            y, p = rows.labels[chosen, task], rows.predictions[chosen, column]
            w = rows.weights[chosen] if rows.task_weights is None else rows.task_weights[chosen, task]
            assert (cell["rows"], cell["positives"]) == (len(y), y.sum())
            both = len(set(y)) == 2
            assert cell["auc"] == (pytest.approx(roc_auc_score(y, p, sample_weight=w)) if both else None)
            loss = pytest.approx(log_loss(y, p, sample_weight=w, labels=[0, 1]), rel=1e-5) if len(y) else None
            assert cell["log_loss"] == loss
            assert cell["calibration"] == (pytest.approx((w * p).sum() / (w * y).sum()) if y.any() else None)


@settings(max_examples=60, deadline=None)
@given(any_rows(), st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_workers_and_the_order_of_rows_change_no_bit(rows: Predictions, seed: int, workers: int) -> None:
    order = np.random.default_rng(seed).permutation(len(rows.weights))
    merged = Predictions.concatenate([rows._take(order[worker::workers]) for worker in range(workers)])
    assert evaluated(merged) == evaluated(rows)
    tasks = with_conditional_tasks(TASKS)
    assert reliability_of_tasks(merged, tasks, [TAB]) == reliability_of_tasks(rows, tasks, [TAB])


# A run of the synthetic table: tasks click, buy (after click) and value (continuous, after buy).

STOPPING = {"early_stopping": {"metric": "buy_given_click.auc", "patience": 3}, "validate_every_steps": 4}


def evaluate_test(worker: Any, experiment: Experiment) -> dict[str, Any] | None:
    return evaluate_on_worker(worker, experiment, LATEST, "test")


@pytest.fixture(scope="module", params=["product", "direct"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    folder = tmp_path_factory.mktemp(request.param)
    head = {"head": {"kind": "towers", "hidden": [8], "conversion": request.param}}
    experiment = new_run(folder, training={"max_steps": 16, **STOPPING}, model=head)
    with one_worker() as worker:
        assert run_on(worker, experiment) == "finished"
        evaluate_test(worker, experiment)
    return experiment


@pytest.fixture(scope="module")
def rows(run: Experiment, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The prediction file of the test split, and what its metadata says."""
    output = tmp_path_factory.mktemp("predictions")
    predict.run(run, "latest", "test", str(output), "local", None)
    file = pq.read_table(output / "part-00000.parquet")
    table: pd.DataFrame = file.to_pandas()
    table.attrs["statistics"] = json.loads(file.schema.metadata[b"manygate"])["statistics"]
    return table


def test_the_column_of_prediction_files(run: Experiment, rows: pd.DataFrame) -> None:
    assert [name for name in rows.columns if name.startswith("prediction_")] == [
        *("prediction_click", "prediction_buy", "prediction_value"),
        "prediction_buy_given_click",
    ]
    assert rows.attrs["statistics"] == {
        **dict.fromkeys(("click", "buy", "buy_given_click"), "probability"),
        "value": "mean",
    }
    given = rows.prediction_buy_given_click
    assert len(given) == 90 and given.between(0, 1).all() and given.nunique() > 50
    if run.model.head.conversion == "product":
        np.testing.assert_allclose(given * rows.prediction_click, rows.prediction_buy, rtol=1e-5)
    else:
        np.testing.assert_allclose(given, np.minimum(1, rows.prediction_buy / rows.prediction_click), rtol=1e-5)


def test_the_evaluation_is_that_of_the_prediction_file(run: Experiment, rows: pd.DataFrame) -> None:
    evaluation = read_evaluation(evaluation_file(run.folder, "test"))
    assert evaluation is not None and evaluation.given == {"buy_given_click": "click"}
    found = evaluation.tasks["buy_given_click"]
    for label, cell in {"all": found.overall, **found.scenarios}.items():
        clicked = rows[(rows.label_click == 1) & ((label == "all") | (rows.scenario_tab == label))]
        labels, given = clicked.label_buy, clicked.prediction_buy_given_click
        assert (cell["rows"], cell["positives"]) == (len(clicked), labels.sum())
        assert cell["auc"] == (pytest.approx(roc_auc_score(labels, given)) if labels.nunique() == 2 else None)
        assert cell["calibration"] == pytest.approx(given.sum() / labels.sum())
    assert 0 < found.overall["rows"] < evaluation.rows  # type: ignore[operator]
    assert sum(evaluation.reliability["buy_given_click"]["all"].rows) == found.overall["rows"]


def test_validations_record_it_and_early_stopping_uses_it(run: Experiment) -> None:
    (saved,) = (state for state in (Path(run.folder) / "checkpoints").glob("step-00000016/state.json"))
    best = json.loads(saved.read_text())["progress"]["best"]
    values = [line["tasks"]["buy_given_click"]["auc"] for line in metrics(run) if line["kind"] == "valid"]
    assert len(values) == 4 and best == max(values)


def test_two_workers_equal_one(run: Experiment, two_workers: WorkerPool) -> None:
    """Up to the rounding of predictions, whose matrices have another size; the same predictions give the same bits."""
    with one_worker() as worker:
        alone = evaluate_test(worker, run)
    together, _ = two_workers.run(evaluate_test, run)
    assert alone is not None and together is not None and together["given"] == alone["given"]
    one, two = (flatten(evaluation["tasks"]["buy_given_click"]) for evaluation in (alone, together))
    assert two == pytest.approx(one, rel=1e-5) and len(one) > 20


def test_tables_and_the_page_show_it(run: Experiment) -> None:
    evaluation = read_evaluation(evaluation_file(run.folder, "test"))
    assert evaluation is not None
    assert "\nbuy_given_click (binary, over the rows with click): mean AUC" in format_evaluation(evaluation)
    page = Path(write_report(run.folder)).read_text()
    assert 'buy_given_click, test split <span class="note">(over the rows with click)</span>' in page
    assert "<figcaption>buy_given_click: AUC</figcaption>" in page
    assert "<dt>buy_given_click AUC</dt>" in page


def test_a_run_of_an_earlier_version_is_continued_and_reported(run: Experiment, tmp_path: Path) -> None:
    """Its lines and evaluations lack P(task | after), also where early stopping uses it now."""
    after = continued(run, tmp_path, 8, training={"max_steps": 16, **STOPPING}, model=run.model.model_dump(mode="json"))
    log, evaluation = Path(after.folder) / "metrics.jsonl", Path(evaluation_file(after.folder, "test"))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for document in (*lines, content := json.loads(evaluation.read_text())):
        document.pop("given", None)
        document["tasks"].pop("buy_given_click", None)
    log.write_text("".join(json.dumps(line) + "\n" for line in lines if line["step"] <= 8))
    evaluation.write_text(json.dumps(content))
    write_report(after.folder)
    assert (found := read_evaluation(str(evaluation))) is not None and found.given == {}
    with one_worker() as worker:
        assert run_on(worker, after) == "finished"
    assert "buy_given_click: AUC" in Path(write_report(after.folder)).read_text()


def test_a_name_that_is_needed_for_it_is_refused(tmp_path: Path) -> None:
    tasks = [
        {"name": "click", "column": "c", "kind": "binary"},
        {"name": "buy", "column": "b", "kind": "binary", "after": "click"},
        {"name": "buy_given_click", "column": "bc", "kind": "binary"},
    ]
    with pytest.raises(UserError, match="'buy_given_click' is needed for the probability of 'buy' after 'click'"):
        synthetic.experiment(tmp_path, tasks=tasks)
    tasks[2]["name"] = "sale"
    assert len(synthetic.experiment(tmp_path, tasks=tasks).tasks) == 3


def test_a_metric_of_an_unknown_name_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    stopping = {"metric": "buy_after_click.auc", "patience": 1}
    with pytest.raises(UserError, match="no task is called 'buy_after_click'.*buy_given_click"):
        synthetic.experiment(tmp_path, training={"early_stopping": stopping})
