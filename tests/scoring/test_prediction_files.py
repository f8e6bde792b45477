"""Predictions as Parquet: their columns, and when they are marked as complete."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import predict, train
from pipeline.errors import UserError
from pipeline.evaluation.log_unit import LogUnit
from pipeline.evaluation.predictions import PredictedBatch
from pipeline.evaluation.split_metrics import Predictions
from pipeline.scoring.prediction_files import count_not_finite, finish, prediction_table
from tests import synthetic
from tests.training.runs import new_run


def test_predictions_without_keys(tmp_path: Path) -> None:
    """Keys are optional: without them, rows hold scenarios, labels and predictions."""
    experiment = new_run(tmp_path, logs={"keys": []}, training={"max_steps": 2})
    train.run(experiment, "local", None, "auto")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/part-00007.parquet").write_text("left by a prediction that was killed")
    predict.run(experiment, "latest", "test", str(tmp_path / "out"), "local", None)
    with pytest.raises(UserError, match="is not empty: name another"):
        predict.run(experiment, "latest", "test", str(tmp_path / "out"), "local", None)
    rows = pq.read_table(tmp_path / "out")
    assert rows.num_rows == 90
    assert rows.column_names[:3] == ["scenario_tab", "label_click", "prediction_click"]


def test_predictions_that_are_too_large_in_the_logs_unit_are_counted(tmp_path: Path) -> None:
    """1,000 is a finite logarithm, and its exponential is none."""
    value = {"name": "value", "column": "v", "kind": "continuous", "transform": "log1p"}
    experiment = synthetic.experiment(tmp_path, tasks=[value])
    values = np.array([[1.0], [1000.0], [np.nan]], np.float32)
    rows = Predictions(np.zeros((3, 1), np.float32), values, np.ones(3, np.float32), np.zeros((3, 1), np.int32))
    batch = PredictedBatch(rows, None, None)  # type: ignore[arg-type]
    table = prediction_table(batch, experiment, [LogUnit(experiment.tasks[0], experiment.scenarios, {"all": 2.0})])
    assert table["prediction_value"].to_pylist()[:2] == [pytest.approx(2 * np.e - 1), np.inf]
    assert count_not_finite(batch, table, experiment) == 2


def test_predictions_that_are_not_finite_are_not_marked_as_complete(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="3 predictions are not finite numbers"):
        finish([(5, 0), (4, 3)], {"split": "test"}, str(tmp_path))
    assert not list(tmp_path.iterdir())
    assert finish([(5, 0), (4, 0)], {"split": "test"}, str(tmp_path)) == 9
