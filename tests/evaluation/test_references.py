"""Metrics in the log's unit of targets that depend on another column, such as watch time / duration."""

from typing import Any

import numpy as np
import pytest

from pipeline.config.logs import ScenarioConfig, TaskConfig
from pipeline.evaluation.log_unit import LogUnit
from pipeline.evaluation.split_metrics import Predictions, evaluate
from pipeline.features.group_quantiles import GroupQuantiles, sample

TAB = [ScenarioConfig(name="tab", column="tab", values=[0], other="keep")]
PLAY = np.array([0.0, 30.0, 90.0, 55.0])
LENGTH = np.array([20.0, 40.0, 30.0, 50.0], np.float32)
GUESS = np.array([10.0, 20.0, 60.0, 25.0])


def task(**keys: Any) -> TaskConfig:
    return TaskConfig.model_validate({"name": "watch", "column": "play", "kind": "continuous", **keys})


def rows_of(labels: np.ndarray, predictions: np.ndarray) -> Predictions:
    """Four rows, and a fifth whose duration cannot be used: it has no label."""
    return Predictions(
        labels=np.append(labels, np.nan)[:, None].astype(np.float32),
        predictions=np.append(predictions, 0.5)[:, None].astype(np.float32),
        weights=np.ones(5, np.float32),
        scenarios=np.zeros((5, 1), np.int32),
        task_weights=np.array([[1], [1], [1], [1], [0]], np.float32),
        references=np.append(LENGTH, np.nan)[:, None].astype(np.float32),
    )


@pytest.mark.parametrize("keys", [{}, {"scale": 0.1}, {"loss": "weighted_logistic"}])
def test_metrics_of_ratios_in_the_unit_of_the_log(keys: dict[str, Any]) -> None:
    of = task(relative_to="length", missing="skip", **keys)
    rows = rows_of(of.to_training_scale(PLAY / LENGTH), of.to_training_scale(GUESS / LENGTH))
    cell = evaluate(rows, [of], TAB)["tasks"]["watch"]
    assert cell["rmse_log_unit"] == pytest.approx(np.sqrt(np.mean((GUESS - PLAY) ** 2)), rel=1e-5)
    assert cell["mean_label_log_unit"] == pytest.approx(PLAY.mean(), rel=1e-5)
    assert cell["calibration_log_unit"] == pytest.approx(GUESS.sum() / PLAY.sum(), rel=1e-5)
    assert cell["rows"] == 4


def test_a_logarithm_of_a_ratio_is_a_mean_times_the_duration() -> None:
    of = task(relative_to="length", missing="skip", transform="log1p")
    mu, reference = np.array([0.2, 1.0]), np.array([30.0, 10.0], np.float32)
    unit = LogUnit(of, TAB, {"all": 1.5})
    found = unit.predictions(mu, np.zeros((2, 1), np.int32), references=reference)
    np.testing.assert_allclose(found, (1.5 * np.exp(mu) - 1) * reference, rtol=1e-6)


def test_metrics_of_quantiles_in_the_unit_of_the_log() -> None:
    of = task(quantiles_within={"column": "length", "groups": 2}, missing="skip")
    quantiles = GroupQuantiles.fit(sample(np.arange(4, dtype=np.uint64), LENGTH, PLAY), 2)  # up to 30, and above
    labels = quantiles.quantiles_of(PLAY, LENGTH)
    np.testing.assert_allclose(labels, [0.25, 0.25, 0.75, 0.75])
    rows = rows_of(labels, np.array([0.5, 0.5, 0.5, 0.5]))
    cell = evaluate(rows, [of], TAB, quantiles={"watch": quantiles})["tasks"]["watch"]
    predicted = np.array([45.0, 42.5, 45.0, 42.5])  # the middles of 0 and 90, and of 30 and 55
    assert cell["rmse_log_unit"] == pytest.approx(np.sqrt(np.mean((predicted - PLAY) ** 2)), rel=1e-6)
    assert cell["calibration_log_unit"] == pytest.approx(predicted.sum() / PLAY.sum(), rel=1e-6)
    assert LogUnit(of, TAB, {}, quantiles).statistic == "median"
