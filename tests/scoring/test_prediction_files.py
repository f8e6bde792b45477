"""Predictions as Parquet: their columns, and when they are marked as complete."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import predict, train
from pipeline.checkpoint.choice import LATEST
from pipeline.errors import UserError
from pipeline.evaluation.log_unit import LogUnit
from pipeline.evaluation.predictions import PredictedBatch
from pipeline.evaluation.split_metrics import Predictions
from pipeline.scoring.prediction_files import count_not_finite, finish, predict_on_worker, prediction_table
from pipeline.table.manifest import KEY
from tests import synthetic
from tests.training.runs import new_run, run_on
from tests.workers import one_worker


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


def test_a_key_with_the_name_of_a_prediction_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as the score of another model, which the log contains."""
    experiment = new_run(tmp_path, training={"max_steps": 2})
    for file in Path(experiment.table_folder).glob("test/*/*/*.parquet"):
        table = pq.read_table(file)
        for name in ("prediction_click", "prediction_buy_given_click"):
            table = table.append_column(KEY + name, pa.array(np.full(len(table), "theirs")))
        pq.write_table(table, file, row_group_size=16)
    with one_worker() as worker:
        run_on(worker, experiment)
        keys = ["prediction_buy_given_click", "row", "prediction_click"]
        logs = experiment.logs.model_copy(update={"keys": keys})
        predict_on_worker(worker, experiment.model_copy(update={"logs": logs}), LATEST, "test", str(tmp_path / "out"))
    rows = pq.read_table(tmp_path / "out")
    assert rows.column_names[:2] == ["row", "scenario_tab"]
    assert pa.types.is_floating(rows.schema.field("prediction_click").type)
    for key in ("prediction_click", "prediction_buy_given_click"):
        assert f"The key column {key!r} of the log is left out" in caplog.text


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
