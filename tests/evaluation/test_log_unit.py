"""Predictions in the log's unit: means and medians against closed forms, and smearing factors by hand."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

from models.continuous import CONTINUOUS
from models.loss_config import LOSSES
from pipeline.config.logs import ScenarioConfig, TaskConfig
from pipeline.evaluation.evaluation import parse_evaluation
from pipeline.evaluation.log_unit import LogUnit, needs_smearing, smearing_factors
from pipeline.evaluation.split_metrics import Predictions, evaluate, metric_value
from pipeline.features.group_quantiles import GroupQuantiles
from pipeline.metrics.registry import LOG_UNIT, column_metrics
from pipeline.report.tables import metric_tables
from pipeline.report.text import WIDTH, format_evaluation
from pipeline.table.content_text import number

TAB = ScenarioConfig(name="tab", column="tab", values=[1, 0])
USER = ScenarioConfig(name="user", column="is_new", values=["new", "old"], other="drop")


def task(**keys: Any) -> TaskConfig:
    given_keys = {"name": "time", "column": "ms", "kind": "continuous", "scale": 0.001, "transform": "log1p", **keys}
    return TaskConfig.model_validate(given_keys)


def rows_of(labels: np.ndarray, predictions: np.ndarray, scenarios: np.ndarray, **more: Any) -> Predictions:
    """One continuous task; labels and predictions are logarithms."""
    ones = np.ones(len(labels), np.float32)
    columns = labels[:, None].astype(np.float32), predictions[:, None].astype(np.float32)
    return Predictions(*columns, weights=ones, scenarios=scenarios.astype(np.int32), **more)


def factors_of(labels: np.ndarray, predictions: np.ndarray, scenarios: np.ndarray, *levels: ScenarioConfig) -> Any:
    with np.errstate(over="ignore"):
        amounts = np.exp(labels), np.exp(predictions)
    return smearing_factors(*amounts, np.ones(len(labels)), scenarios, levels)


def test_factors_of_two_levels_by_hand() -> None:
    """1 + y is 2 and 6 in tab=1, 12 in tab=0; the model predicts the medians 1, 3 and 4."""
    scenarios = np.array([[0, 0], [0, 1], [1, 0]])
    factors = factors_of(np.log([2.0, 6.0, 12.0]), np.log([1.0, 3.0, 4.0]), scenarios, TAB, USER)
    everything = 20 / 8
    tab_1, tab_0 = (2 * 8 / 4 + 300 * everything) / 302, (3 + 300 * everything) / 301
    assert factors == pytest.approx(
        {
            "all": everything,
            "tab=1": tab_1,
            "tab=0": tab_0,
            "tab=1/user=new": (2 + 300 * tab_1) / 301,
            "tab=1/user=old": (2 + 300 * tab_1) / 301,
            "tab=0/user=new": (3 + 300 * tab_0) / 301,
        }
    )
    unit = LogUnit(task(), [TAB, USER], factors)
    new = np.array([[0, 0], [1, 1], [2, 0]])  # the finest scenario; only its tab occurred; not even that
    expected = [1000 * (3 * f - 1) for f in (factors["tab=1/user=new"], tab_0, everything)]
    assert unit.predictions(np.log([3.0, 3.0, 3.0]), new).tolist() == pytest.approx(expected)
    assert unit.statistic == "mean"


def test_scenarios_whose_names_contain_a_slash_are_not_mixed_up() -> None:
    level = ScenarioConfig(name="tab", column="tab", values=["a/b", "a"], other="drop")
    factors = factors_of(np.log([8.0] * 900), np.zeros(900), np.ones((900, 1), np.int32), level)
    unit = LogUnit(task(scale=1), [level], {**factors, "all": 2.0})
    assert unit.predictions(np.zeros(2), np.array([[0], [1]])).tolist() == pytest.approx([1.0, 7.0])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 300), deviation=st.floats(0.1, 2))
def test_predictions_and_labels_of_all_rows_have_the_same_total(seed: int, rows: int, deviation: float) -> None:
    """With one scenario; with several, shrinkage moves a part of the total between them."""
    rng = np.random.default_rng(seed)
    mu, scenarios = rng.normal(1.0, 0.5, rows), np.zeros((rows, 1), np.int32)
    labels = rng.normal(mu + 0.3, deviation)
    unit = LogUnit(task(), [TAB], factors_of(labels, mu, scenarios, TAB))
    assert unit.predictions(mu, scenarios).sum() == pytest.approx(unit.labels(labels).sum())


def test_factors_of_many_rows_are_those_of_the_distribution() -> None:
    """The spread of the logarithm is .5 in one tab and 1 in the other: the factors are exp(d² / 2)."""
    rng = np.random.default_rng(0)
    tab = rng.integers(0, 2, 200_000)
    mu, deviation = rng.normal(2.0, 1.0, 200_000), np.array([0.5, 1.0])[tab]
    factors = factors_of(rng.normal(mu, deviation), mu, tab[:, None], TAB)
    assert factors["tab=1"] == pytest.approx(math.exp(0.125), rel=0.01)
    assert factors["tab=0"] == pytest.approx(math.exp(0.5), rel=0.02)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_only_proportions_of_weights_matter_and_rows_without_a_label_do_not_count(seed: int) -> None:
    """Equal weights of any size are no weights; rows of weight 0, and rows without a label, might as well not exist."""
    rng = np.random.default_rng(seed)
    labels, mu, has_label = rng.normal(size=50), rng.normal(size=50), rng.random(50) < 0.7
    scenarios = np.stack([rng.integers(0, 3, 50), rng.integers(0, 2, 50)], axis=1)
    weights = np.where(has_label, 1e-3, 0)[:, None].astype(np.float32)
    rows = rows_of(np.where(has_label, labels, np.nan), mu, scenarios, task_weights=weights)
    others = rows_of(labels[has_label], mu[has_label], scenarios[has_label])
    found, expected = (evaluate(part, [task()], [TAB, USER])["smearing"]["time"] for part in (rows, others))
    assert found == pytest.approx(expected)


def test_factors_with_weights_by_hand() -> None:
    """The ratios weight the rows; 4² / (1 + 9) = 1.6 rows are drawn towards the factor of all rows."""
    tab, y, mu = np.array([[0], [0], [1]]), np.log([2.0, 6.0, 9.0]), np.log([1.0, 2.0, 3.0])
    factors = smearing_factors(np.exp(y), np.exp(mu), np.array([1.0, 3.0, 2.0]), tab, [TAB])
    everything = (2 + 18 + 18) / (1 + 6 + 6)
    assert factors == pytest.approx(
        {
            "all": everything,
            "tab=1": (1.6 * 20 / 7 + 300 * everything) / 301.6,
            "tab=0": (3 + 300 * everything) / 301,
        }
    )


def test_rows_without_weight_and_models_that_have_diverged_have_no_factors() -> None:
    one, scenarios = np.zeros(3), np.zeros((3, 1), np.int32)
    assert smearing_factors(one, one, np.zeros(3), scenarios, [TAB]) == {}
    assert factors_of(one, one + 1e6, scenarios, TAB) == {}
    assert factors_of(np.empty(0), np.empty(0), np.empty((0, 1), np.int32), TAB) == {}
    unit = LogUnit(task(), [TAB], {})
    assert unit.statistic == "median"
    assert unit.predictions(np.log([3.0]), scenarios[:1]).tolist() == pytest.approx([2000])


@pytest.mark.parametrize(("mu", "deviation", "scale"), [(0.0, 1.0, 1.0), (2.3, 0.4, 0.001), (-1.0, 1.7, 100.0)])
def test_mean_and_median_of_a_lognormal_loss_are_those_of_the_distribution(
    mu: float, deviation: float, scale: float
) -> None:
    distribution, row = stats.lognorm(s=deviation, scale=math.exp(mu)), np.zeros((1, 1), np.int32)
    for statistic, expected in (("mean", distribution.mean()), ("median", distribution.median())):
        unit = LogUnit(task(loss="lognormal", scale=scale, prediction=statistic), [TAB], {})
        (found,) = unit.predictions(np.array([mu]), row, np.array([deviation]))
        assert (found, unit.statistic) == (pytest.approx((expected - 1) / scale, rel=1e-12), statistic)


def test_prediction_median_is_the_inverse_of_the_transform() -> None:
    unit = LogUnit(task(prediction="median"), [TAB], {"all": 5.0})
    assert unit.predictions(np.log([1.0, 4.0]), np.zeros((2, 1), np.int32)).tolist() == pytest.approx([0, 3000])
    assert unit.statistic == "median"


@pytest.mark.parametrize(
    ("keys", "statistic"),
    [
        ({"kind": "binary", "scale": 1, "transform": "identity"}, "probability"),
        ({"transform": "identity"}, "mean"),
        ({"transform": "identity", "loss": "huber"}, "between median and mean"),
        ({"transform": "identity", "loss": "ziln"}, "mean"),
    ],
)
def test_a_target_without_transform_is_only_divided_by_its_scale(keys: dict[str, Any], statistic: str) -> None:
    unit = LogUnit(task(**keys), [TAB], {})
    values = np.array([0.25, 0.5])
    assert unit.predictions(values, np.zeros((2, 1), np.int32)).tolist() == (values / unit.task.scale).tolist()
    assert unit.statistic == statistic and not needs_smearing(unit.task)


def test_a_loss_has_a_deviation_where_its_facts_say_so() -> None:
    assert [name for name, loss in CONTINUOUS.items() if loss.deviation is not None] == [
        name for name, facts in LOSSES.items() if facts.of_logarithms
    ]


def logs(rows: int, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    mu = rng.normal(1.5, 0.7, rows)
    scenarios = np.stack([rng.integers(0, 2, rows), rng.integers(0, 2, rows)], axis=1)
    return rows_of(np.abs(rng.normal(mu, 0.9)), mu, scenarios)


def test_metrics_in_the_logs_unit_are_those_of_converted_rows() -> None:
    rows = logs(3000)
    evaluation = evaluate(rows, [task()], [TAB, USER])
    unit = LogUnit(task(), [TAB, USER], evaluation["smearing"]["time"])
    y = np.expm1(rows.labels[:, 0].astype(np.float64)) * 1000
    predicted = unit.predictions(rows.predictions[:, 0], rows.scenarios)
    for label, members in {"all": slice(None), "tab=0": rows.scenarios[:, 0] == 1}.items():
        cell = evaluation["tasks"]["time"]
        cell = cell if label == "all" else cell["scenarios"][label]
        assert cell["rmse_log_unit"] == pytest.approx(root_mean_squared_error(y[members], predicted[members]))
        assert cell["mae_log_unit"] == pytest.approx(mean_absolute_error(y[members], predicted[members]))
        assert cell["calibration_log_unit"] == pytest.approx(predicted[members].sum() / y[members].sum())
        assert cell["mean_label_log_unit"] == pytest.approx(y[members].mean())
        assert cell["mean_prediction_log_unit"] == pytest.approx(predicted[members].mean())
    assert evaluation["tasks"]["time"]["calibration_log_unit"] == pytest.approx(1, abs=0.02)
    assert evaluation["statistics"] == {"time": "mean"}
    medians = evaluate(rows, [task()], [TAB, USER], smearing={})
    assert medians["tasks"]["time"]["calibration_log_unit"] < 0.75 and medians["statistics"] == {"time": "median"}


def test_calibration_says_what_the_training_scale_hides() -> None:
    """The issue's case: the mean of logarithms is right, and the inverse of the transform is too small."""
    rows = logs(20_000)
    rows.labels = rows.predictions + np.random.default_rng(1).normal(0, 1.2, (20_000, 1)).astype(np.float32)
    task_of = evaluate(rows, [task(prediction="median")], [TAB, USER])["tasks"]["time"]
    assert task_of["calibration"] == pytest.approx(1, abs=0.02)
    assert task_of["calibration_log_unit"] == pytest.approx(math.exp(-(1.2**2) / 2), abs=0.1)
    assert evaluate(rows, [task()], [TAB, USER])["tasks"]["time"]["calibration_log_unit"] == pytest.approx(1, abs=0.01)


def test_a_target_in_the_logs_unit_has_no_metrics_twice() -> None:
    evaluation = evaluate(logs(50), [task(scale=1, transform="identity")], [TAB, USER])
    names = {metric.name for metric in column_metrics("continuous", LOG_UNIT)}
    assert names and not names & evaluation["tasks"]["time"].keys() and not evaluation["statistics"]
    assert "in the log's unit" not in format_evaluation(parse_evaluation(evaluation))


def test_metrics_that_float64_cannot_hold_are_undefined_and_stop_nothing() -> None:
    rows = logs(50)
    rows.predictions[0] = 400  # its exponential exists, the square of it does not
    rows.predictions[1] = 5000
    evaluation = evaluate(rows, [task(prediction="median")], [TAB, USER])
    assert evaluation["tasks"]["time"]["rmse_log_unit"] is None and evaluation["tasks"]["time"]["rmse"] > 0


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), loss=st.sampled_from(["mse", "lognormal"]))
def test_the_order_of_rows_changes_no_bit(seed: int, loss: str) -> None:
    rows, rng = logs(60, seed), np.random.default_rng(seed)
    rows.labels, rows.predictions = rows.labels.round(1), rows.predictions.round(1)
    if loss == "lognormal":
        rows.deviations = rng.random((60, 1)).astype(np.float32)
    order = rng.permutation(60)
    parts = [rows._take(order[worker::3]) for worker in range(3)]
    merged = Predictions.concatenate(parts)
    assert evaluate(merged, [task(loss=loss)], [TAB, USER]) == evaluate(rows, [task(loss=loss)], [TAB, USER])


def test_terminal_and_page_show_both_units() -> None:
    evaluation = evaluate(logs(200), [task()], [TAB, USER])
    parsed = parse_evaluation({**evaluation, "split": "test"})
    text = format_evaluation(parsed)
    assert "time (continuous, on the training scale)" in text
    block = text.partition("time (continuous, in the log's unit; prediction: mean)\n")[2].splitlines()
    assert block[0].split() == ["RMSE", "MAE", "calibration", "label", "predicted", "rows"]
    assert f"{evaluation['tasks']['time']['rmse_log_unit']:.4f}" in block[1]
    assert metric_value(evaluation, "time.rmse_log_unit") == evaluation["tasks"]["time"]["rmse_log_unit"]
    scale, unit = metric_tables(parsed)
    assert (scale.note, unit.note) == ("on the training scale", "in the log's unit; prediction: mean")
    assert unit.columns == ["RMSE ↓", "MAE ↓", "calibration → 1", "label", "predicted", "rows"]
    assert list(unit.rows) == list(scale.rows)


def test_amounts_of_any_size_are_readable() -> None:
    """A label of 1e30 is a logarithm of 69: float32 holds both, and a table has a column for it."""
    rows = rows_of(np.log1p([1e30, 5.0]), np.log1p([1e29, 5.0]), np.zeros((2, 1), np.int32))
    parsed = parse_evaluation(
        {**evaluate(rows, [task(scale=1)], [TAB], smearing={"time": {"all": 1.0}}), "split": "test"}
    )
    text = format_evaluation(parsed)
    assert "6.3640e+29" in text  # RMSE: 9e29 / sqrt(2)
    assert max(map(len, text.splitlines())) < WIDTH
    assert (number(1e30), number(12345.6), number(0.5)) == ("1e+30", "12,346", "0.5")


def test_evaluations_of_earlier_versions_have_one_table_per_task() -> None:
    evaluation = evaluate(logs(50), [task()], [TAB, USER])
    del evaluation["statistics"], evaluation["smearing"]
    for cell in (evaluation["tasks"]["time"], *evaluation["tasks"]["time"]["scenarios"].values()):
        for name in [name for name in cell if name.endswith("_log_unit")]:
            del cell[name]
    parsed = parse_evaluation(evaluation)
    assert len(metric_tables(parsed)) == 1 and "in the log's unit" not in format_evaluation(parsed)


def relative_rows(target: np.ndarray) -> tuple[Predictions, np.ndarray]:
    """Targets of one task in one scenario with poor predictions, and the column that the targets depend on."""
    random = np.random.default_rng(5)
    references = random.uniform(1e3, 9e4, len(target)).astype(np.float32)
    predictions = np.clip(target + random.normal(0, 0.2, len(target)), 0.01, 0.99)
    rows = rows_of(target, predictions, np.zeros((len(target), 1)), references=references[:, None])
    return rows, references


def test_totals_of_ratios_are_those_of_the_log_unit() -> None:
    """Also if the error depends on the column that the target is relative to."""
    watched = task(relative_to="duration", scale=1)
    rows, references = relative_rows(np.random.default_rng(3).uniform(0, 1, 500))
    rows.predictions[:, 0] -= 0.3 * (references > 5e4)
    cell = evaluate(rows, [watched], [TAB])["tasks"]["time"]
    assert cell["calibration_log_unit"] == pytest.approx(1, abs=1e-6)
    expected = np.mean(np.expm1(rows.labels[:, 0].astype(np.float64)) * references)
    assert (cell["mean_label_log_unit"], cell["mean_prediction_log_unit"]) == pytest.approx((expected, expected))
    medians = evaluate(rows, [watched.model_copy(update={"prediction": "median"})], [TAB])["tasks"]["time"]
    assert abs(medians["calibration_log_unit"] - 1) > 0.05


def test_labels_at_quantiles_become_means() -> None:
    """Of a watch time with a long tail, the label at the mean quantile is about the median."""
    random = np.random.default_rng(4)
    rows, references = relative_rows(np.zeros(4000))
    play = np.exp(random.normal(3, 1.5, 4000))
    table = pa.table({"key": np.arange(4000, dtype=np.uint64), "reference": references, "label": play})
    quantiles = {"time": GroupQuantiles.fit(table, 10)}
    rows.labels[:, 0] = quantiles["time"].quantiles_of(play, references)
    rows.predictions[:, 0] = 0.5
    keys = {"transform": "identity", "scale": 1.0, "quantiles_within": {"column": "duration", "groups": 10}}
    found = {
        statistic: evaluate(rows, [task(**keys, prediction=statistic)], [TAB], quantiles=quantiles)
        for statistic in ("mean", "median")
    }
    assert {name: of["statistics"]["time"] for name, of in found.items()} == {"mean": "mean", "median": "median"}
    cells = {name: of["tasks"]["time"] for name, of in found.items()}
    assert cells["mean"]["calibration_log_unit"] == pytest.approx(1, abs=1e-6)
    assert cells["median"]["mean_prediction_log_unit"] == pytest.approx(np.median(play), rel=0.1)
    assert cells["median"]["calibration_log_unit"] < 0.5  # exp(-1.5^2 / 2) = .32
