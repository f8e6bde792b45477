"""Targets that are relative to a column, such as watch time / duration: the feature table, and the way back."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.logs import TaskConfig
from pipeline.errors import UserError
from pipeline.evaluation.log_unit import LogUnit, log_units
from pipeline.evaluation.predictions import PredictedBatch
from pipeline.evaluation.split_metrics import Predictions, evaluate
from pipeline.loading.batch import Batch
from pipeline.loading.position import Position
from pipeline.loading.reader import Reader
from pipeline.scoring.prediction_files import prediction_table
from pipeline.sharding.model_inputs import batch_columns, model_inputs
from pipeline.table.content_report import report_content
from pipeline.table.manifest import Manifest
from tests.preprocess.logs import experiment, read_split
from tests.preprocess.test_labels_and_weights import CLICK, TAB, USER, make, only_partition, write

NAN, INF = math.nan, math.inf
WATCH: dict[str, Any] = {"name": "watch", "column": "play", "kind": "continuous", "relative_to": "length"}
PLAY = [0.0, 30.0, 90.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0, None, INF]
LENGTH = [20.0, 40.0, 30.0, None, NAN, 0.0, -5.0, INF, 1e-60, 50.0, 50.0]
GOOD = [0, 1, 2]
RATIOS = np.array([0.0, 0.75, 3.0])


pytestmark = pytest.mark.usefixtures("without_ray")


def table_of(folder: Path, task: dict[str, Any], columns: dict[str, Any] | None = None, **sections: Any) -> Manifest:
    for day in (1, 2):
        write(folder, day, columns or {"play": PLAY, "length": LENGTH, "click": [1] * len(PLAY)})
    return make(folder, tasks=[CLICK, task], **sections)


def columns_of(folder: Path, manifest: Manifest, split: str = "train") -> tuple[dict[int, float], dict[int, float]]:
    """Label and reference by the number of the row in the log."""
    rows = read_split(folder / "table", manifest, split)
    numbers = (rows["key:row"] % 100).tolist()
    return dict(zip(numbers, rows["label:watch"], strict=True)), dict(
        zip(numbers, rows["reference:watch"], strict=True)
    )


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, RATIOS),
        ({"max": 1}, [0, 0.75, 1]),
        ({"scale": 100.0, "transform": "log1p"}, np.log([1, 76, 301])),
        ({"max": 2, "scale": 0.5, "transform": "log1p"}, np.log([1, 1.375, 2])),
        ({"loss": "weighted_logistic"}, RATIOS),
    ],
)
def test_the_target_is_the_ratio_clipped_scaled_and_transformed(
    tmp_path: Path, keys: dict[str, Any], expected: Any
) -> None:
    labels, references = columns_of(tmp_path, table_of(tmp_path, {**WATCH, **keys}))
    assert [labels[row] for row in GOOD] == pytest.approx(list(expected), rel=1e-6)
    assert references == {0: 20, 1: 40, 2: 30}


def test_every_unusable_duration_has_its_own_reason(tmp_path: Path) -> None:
    partition = only_partition(table_of(tmp_path, WATCH))
    assert partition.reasons == {
        "task watch: length (its relative_to) is missing": 2,
        "task watch: length (its relative_to) is 0 or negative": 2,
        "task watch: length (its relative_to) is infinite": 1,
        "task watch: length (its relative_to) is outside float32": 1,
        "task watch: label is missing": 1,
        "task watch: label is infinite": 1,
    }


def test_with_skip_rows_without_a_usable_duration_have_no_label_and_are_kept(tmp_path: Path) -> None:
    manifest = table_of(tmp_path, {**WATCH, "missing": "skip"})
    labels, references = columns_of(tmp_path, manifest)
    assert only_partition(manifest).reasons == {"task watch: label is infinite": 1}
    assert sorted(labels) == list(range(10))
    assert [row for row in labels if not np.isnan(labels[row])] == GOOD == [0, 1, 2]
    assert sorted(row for row in references if not np.isnan(references[row])) == [*GOOD, 9]  # 9: only its label is null


def test_too_many_unusable_durations_are_an_error_whose_advice_holds(tmp_path: Path) -> None:
    columns = {"play": [1.0] * 4, "length": [0.0, 0.0, 5.0, 5.0], "click": [1] * 4}
    with pytest.raises(UserError, match=r"2 of 4 rows .* is 0 or negative \(2\).*set tasks.watch.missing to `skip`"):
        table_of(tmp_path, WATCH, columns, logs={"max_quarantined": 0.01})
    manifest = make(tmp_path, tasks=[CLICK, {**WATCH, "missing": "skip"}], overwrite=True)
    assert only_partition(manifest).kept == 4


def test_the_duration_may_come_from_a_side_table(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user": [1, 2], "length": [10, 0]}), tmp_path / "side.parquet")
    columns = {"user": [1, 2, 3], "play": [5.0] * 3, "click": [1] * 3}
    joins = {"joins": [{"path": str(tmp_path / "side.parquet"), "key": "user"}]}
    manifest = table_of(tmp_path, {**WATCH, "missing": "skip"}, columns, logs=joins)
    labels, references = columns_of(tmp_path, manifest)
    assert labels[0] == 0.5 and np.isnan([labels[1], labels[2]]).all()
    assert references[0] == 10 and np.isnan([references[1], references[2]]).all()


def test_outside_the_scenarios_of_the_task_a_duration_is_not_needed(tmp_path: Path) -> None:
    columns = {"tab": [0, 1, 1], "play": [None, None, 4.0], "length": [0.0, None, 8.0], "click": [1] * 3}
    for day in (1, 2):
        write(tmp_path, day, columns)
    manifest = make(tmp_path, tasks=[CLICK, {**WATCH, "only": {"tab": [1]}}], scenarios=[TAB])
    assert only_partition(manifest).reasons == {"task watch: label is missing": 1}
    assert columns_of(tmp_path, manifest)[0][2] == 0.5


def test_the_content_is_counted_in_the_unit_of_the_log(tmp_path: Path) -> None:
    """Ratios of 0, .75 and 3, of which the last is clipped to 2: watch times of 0, 30 and 60."""
    task = {**WATCH, "max": 2, "scale": 3.0, "transform": "log1p"}
    manifest = table_of(tmp_path, task)
    content = only_partition(manifest).content
    assert content is not None
    found = content.tasks["watch"]
    assert (found.labels, found.zeros, found.clipped) == (3, 1, 1)
    assert (found.sum, found.lowest, found.highest) == pytest.approx((90, 0, 60), rel=1e-6)
    of = experiment(tmp_path, logs={"joins": []}, features=[USER], scenarios=[TAB], tasks=[CLICK, task])
    lines = "\n".join(report_content(of.table_experiment, manifest).lines)
    assert "watch, mean" in lines and "labels above `max` (2), clipped" in lines


@given(
    st.lists(
        st.tuples(st.floats(0, 1e7), st.floats(1e-3, 1e7)),
        min_size=1,
        max_size=20,
    ),
    st.sampled_from([{}, {"transform": "log1p"}, {"scale": 0.01, "transform": "log1p"}]),
)
def test_a_ratio_times_its_reference_is_the_label_again(pairs: list[tuple[float, float]], keys: dict[str, Any]) -> None:
    task = TaskConfig.model_validate({**WATCH, **keys})
    play, reference = np.array(pairs)[:, 0], np.array(pairs)[:, 1].astype(np.float32)
    trained = task.to_training_scale(play / reference)
    back = LogUnit(task, [], {}).labels(trained, reference)
    # A logarithm of x in float32 moves x by up to log1p(x) * 2^-24.
    slack = 1e-5 * (play + reference / task.scale)
    assert (np.abs(back - play) <= slack).all()


def test_batches_of_evaluation_have_the_references_and_those_of_training_do_not(tmp_path: Path) -> None:
    task = {**WATCH, "missing": "skip"}
    manifest = table_of(tmp_path, task)
    of = experiment(tmp_path, logs={"joins": []}, features=[USER], scenarios=[TAB], tasks=[CLICK, task])
    inputs = model_inputs(of, manifest.table_rows)
    found: dict[int, float] = {}
    for are_read in (False, True):
        columns = batch_columns(of, inputs, ("row",), are_read)
        table = str(tmp_path / "table")
        reader = Reader(table, manifest, "train", columns, global_batch_size=8, rank=0, workers=1)
        batch: Batch
        for batch in reader.epoch(Position()):
            assert (batch.references is not None) == are_read
            if batch.references is not None and batch.keys is not None:
                assert (batch.references[:, 0][batch.weights.numpy() > 0] == 1).all()
                real = np.flatnonzero(batch.weights.numpy() > 0)
                keys = batch.keys["row"].to_numpy(zero_copy_only=False)[real]
                found |= {int(key) % 100: batch.references[row, 1] for key, row in zip(keys, real, strict=True)}
    expected = columns_of(tmp_path, manifest)[1]
    assert found.keys() == expected.keys()
    np.testing.assert_array_equal([found[row] for row in expected], list(expected.values()))


def relative_rows() -> Predictions:
    return Predictions(
        labels=np.array([[1, 0.5], [0, NAN], [1, NAN]], np.float32),
        predictions=np.array([[0.9, 0.25], [0.8, 1.5], [0.7, 2.0]], np.float32),
        weights=np.ones(3, np.float32),
        scenarios=np.zeros((3, 1), np.int32),
        task_weights=np.array([[1, 1], [1, 0], [1, 0]], np.float32),
        references=np.array([[1, 40], [1, 10], [1, NAN]], np.float32),
    )


def test_predictions_are_in_the_unit_of_the_log_and_null_without_a_duration(tmp_path: Path) -> None:
    of = experiment(tmp_path, tasks=[CLICK, {**WATCH, "missing": "skip"}])
    table = prediction_table(PredictedBatch(relative_rows(), None, None), of, log_units(of.tasks, of.scenarios, {}, {}))  # type: ignore[arg-type]
    assert table["label_watch"].to_pylist() == [20.0, None, None]
    assert table["prediction_watch"].to_pylist() == [10.0, 15.0, None]
    assert table["prediction_click"].null_count == 0


def test_a_prediction_that_is_not_finite_is_not_hidden_by_a_missing_duration(tmp_path: Path) -> None:
    rows = relative_rows()
    rows.predictions[1, 1] = NAN
    of = experiment(tmp_path, tasks=[CLICK, WATCH])
    table = prediction_table(PredictedBatch(rows, None, None), of, log_units(of.tasks, of.scenarios, {}, {}))  # type: ignore[arg-type]
    values = table["prediction_watch"].to_pylist()
    assert values[2] is None and values[1] is not None and np.isnan(values[1])


def test_rows_in_another_order_have_the_same_metrics(tmp_path: Path) -> None:
    of = experiment(tmp_path, tasks=[CLICK, {**WATCH, "missing": "skip"}])
    rows = relative_rows()
    one = evaluate(rows, of.tasks, of.scenarios)
    parts = [rows._take(np.array([2])), rows._take(np.array([0, 1]))]
    assert evaluate(Predictions.concatenate(parts), of.tasks, of.scenarios) == one


def test_it_is_named_in_the_errors_of_columns(tmp_path: Path) -> None:
    columns = {"play": [1.0], "length": ["long"], "click": [1]}
    with pytest.raises(UserError, match=r"'length', which task 'watch' \(tasks.1.relative_to\) uses, is string"):
        table_of(tmp_path, WATCH, columns)
    with pytest.raises(
        UserError,
        match=r"not have a column 'lenght', which task 'watch' \(tasks.1.relative_to\) uses; did you mean 'length'",
    ):
        make(tmp_path, tasks=[CLICK, {**WATCH, "relative_to": "lenght"}], overwrite=True)
