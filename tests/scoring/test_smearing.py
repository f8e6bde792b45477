"""Means in the log's unit from a whole run: factors in checkpoints, estimated ones, and any number of workers."""

import json
import logging
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.checkpoint.choice import LATEST, CheckpointChoice
from pipeline.checkpoint.format import Checkpoint, complete_checkpoints
from pipeline.config.experiment import Experiment
from pipeline.config.load import load_experiment
from pipeline.scoring.checkpoint_evaluation import evaluate_on_worker, is_evaluated
from pipeline.scoring.prediction_files import predict_on_worker
from pipeline.table.manifest import LABEL, read_manifest
from pipeline.workers.worker import Worker
from tests import synthetic
from tests.old_runs.copies import copy_of_run
from tests.training.runs import continued, new_run, run_on
from tests.workers import WorkerPool, one_worker

SCALE = 0.5


def sections(loss: str = "mse", prediction: str = "mean", **more: Any) -> dict[str, Any]:
    value = {"name": "value", "column": "v", "kind": "continuous", "scale": SCALE, "transform": "log1p"}
    click = {"name": "click", "column": "c", "kind": "binary"}
    return {
        "tasks": [click, {**value, "loss": loss, "prediction": prediction}],
        "checkpoint": {"every_steps": 5, "keep_last": 100},
        **more,
    }


@pytest.fixture(scope="module")
def run(two_workers: WorkerPool, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Validated at steps 12 and 24; checkpoints also at 5, 10, 15 and 20."""
    experiment = new_run(tmp_path_factory.mktemp("run"), **sections())
    assert two_workers.run(run_on, experiment) == ["finished", "finished"]
    return experiment


def checkpoint(experiment: Experiment, step: int) -> Checkpoint:
    return next(saved for saved in complete_checkpoints(experiment.checkpoint_folder) if saved.step == step)


def predicted(worker: Worker, experiment: Experiment, step: int, output: str) -> int | None:
    choice = CheckpointChoice.parse(checkpoint(experiment, step).uri)
    return predict_on_worker(worker, experiment, choice, "test", output)


def rows(folder: Path) -> pa.Table:
    return pq.read_table(folder).sort_by("row")


def assert_equal(one: pa.Table, two: pa.Table) -> None:
    """Equal up to rounding: matrix products of float32 are rounded differently for another number of rows."""
    assert one.column_names == two.column_names
    for name in one.column_names:
        if name.startswith("prediction_"):
            np.testing.assert_allclose(one[name].to_numpy(), two[name].to_numpy(), rtol=1e-5, atol=1e-6)
        else:
            assert one[name].equals(two[name])


def changed(experiment: Experiment, folder: Path, **keys: Any) -> Experiment:
    """A copy of the run with other keys."""
    return continued(experiment, folder, 24, **keys)


@pytest.mark.parametrize("step", [24, 20])
def test_predictions_are_the_same_on_one_worker_and_on_two(
    run: Experiment, two_workers: WorkerPool, tmp_path: Path, step: int
) -> None:
    """With the factors of the checkpoint, and with factors that are estimated first."""
    with one_worker() as worker:
        assert predicted(worker, run, step, str(tmp_path / "one")) == 90
    assert two_workers.run(predicted, run, step, str(tmp_path / "two")) == [90, None]
    assert_equal(rows(tmp_path / "one"), rows(tmp_path / "two"))


def test_means_are_medians_times_the_factor_of_the_scenario(run: Experiment, tmp_path: Path) -> None:
    """The checkpoint is used with `prediction: median` too, which changes nothing in the model."""
    medians = changed(run, tmp_path / "median", **sections(prediction="median"))
    with one_worker() as worker:
        predicted(worker, run, 24, str(tmp_path / "means"))
        predicted(worker, medians, 24, str(tmp_path / "medians"))
    saved = checkpoint(run, 24).state().progress.smearing
    assert saved is not None and saved.step == 24
    assert saved.factors["value"].keys() == {"all", "tab=0", "tab=1", "tab=other"}
    found, base = rows(tmp_path / "means"), rows(tmp_path / "medians")
    factor = np.array([saved.factors["value"][tab] for tab in found["scenario_tab"].to_pylist()])
    expected = ((1 + SCALE * base["prediction_value"].to_numpy()) * factor - 1) / SCALE
    np.testing.assert_allclose(found["prediction_value"].to_numpy(), expected, rtol=1e-12)
    assert found["prediction_click"].equals(base["prediction_click"])
    for folder, statistic in (("means", "mean"), ("medians", "median")):
        expected_statistics = {"click": "probability", "value": statistic}
        marker = json.loads((tmp_path / folder / "_predictions.json").read_text())
        assert marker["statistics"] == expected_statistics
        metadata = pq.read_schema(next((tmp_path / folder).glob("part-*.parquet"))).metadata
        assert json.loads(metadata[b"manygate"])["statistics"] == expected_statistics


def test_a_checkpoint_without_factors_of_its_step_gets_them_from_the_valid_split(
    run: Experiment, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Step 20 contains those of step 12; at step 24, what is estimated equals what the validation has saved."""
    early = checkpoint(run, 20).state().progress.smearing
    assert early is not None and early.step == 12
    with one_worker() as worker, caplog.at_level(logging.INFO):
        predicted(worker, run, 24, str(tmp_path / "own"))
        assert "estimating them on the valid split" not in caplog.text
        evaluated = evaluate_on_worker(worker, run, CheckpointChoice.parse(checkpoint(run, 20).uri), "valid")
    assert "step-00000020 has no factors of its own step" in caplog.text
    assert evaluated is not None and evaluated["smearing"]["value"] != early.factors["value"]
    assert evaluated["tasks"]["value"]["calibration_log_unit"] == pytest.approx(1, abs=0.02), "the same rows"


def test_estimated_factors_are_those_of_the_validation(run: Experiment, tmp_path: Path) -> None:
    """A checkpoint of an earlier version has none, as if it had been written before its validation."""
    old = changed(run, tmp_path, **sections())
    folder = Path(checkpoint(old, 24).uri)
    forget_factors(folder)
    saved, kept = checkpoint(run, 24).state().progress.smearing, checkpoint(old, 24).state().progress.smearing
    assert saved is not None and kept is None
    with one_worker() as worker:
        evaluated = evaluate_on_worker(worker, old, LATEST, "test")
    assert evaluated is not None
    assert evaluated["smearing"]["value"] == pytest.approx(saved.factors["value"], rel=1e-6)


def forget_factors(folder: Path) -> None:
    """Removes the key from a checkpoint, and corrects size and checksum in its marker."""
    state, marker = folder / "state.json", json.loads((folder / "complete.json").read_text())
    content = json.loads(state.read_text())
    del content["progress"]["smearing"]
    state.write_text(json.dumps(content))
    marker["files"]["state.json"] = {"bytes": state.stat().st_size, "crc32": zlib.crc32(state.read_bytes())}
    (folder / "complete.json").write_text(json.dumps(marker))


def test_without_a_valid_split_values_are_medians_with_a_warning_whose_advice_helps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits = {"train": [1, 2], "test": [4, 4]}
    experiment = new_run(tmp_path / "a", **sections(logs={"splits": splits}, training={"max_steps": 3}))
    with one_worker() as worker:
        run_on(worker, experiment)
        predicted(worker, experiment, 3, str(tmp_path / "medians"))
        assert "Predictions of value are medians, not means" in caplog.text
        assert json.loads((tmp_path / "medians/_predictions.json").read_text())["statistics"]["value"] == "median"
        caplog.clear()
        median = sections(prediction="median", logs={"splits": splits}, training={"max_steps": 3})
        predicted(worker, changed(experiment, tmp_path / "b", **median), 3, str(tmp_path / "asked"))
        assert "medians" not in caplog.text and rows(tmp_path / "asked").equals(rows(tmp_path / "medians"))
        with_valid = changed(experiment, tmp_path / "c", **sections(training={"max_steps": 3}))
        synthetic.write_table(Path(with_valid.table_folder), with_valid)
        predicted(worker, with_valid, 3, str(tmp_path / "means"))
    assert "medians" not in caplog.text
    assert json.loads((tmp_path / "means/_predictions.json").read_text())["statistics"]["value"] == "mean"


def test_a_valid_split_without_labels_gives_medians_and_is_not_called_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = [{**task, "missing": "skip"} for task in sections()["tasks"]]
    experiment = new_run(tmp_path, **sections(training={"max_steps": 3}) | {"tasks": tasks})
    for file in Path(experiment.table_folder).glob("valid/*/*/*.parquet"):
        table = pq.read_table(file)
        column = table.column_names.index(LABEL + "value")
        nothing = pa.array(np.full(len(table), np.nan, np.float32))
        pq.write_table(table.set_column(column, table.schema.field(column), nothing), file, row_group_size=16)
    with one_worker() as worker:
        run_on(worker, experiment)
        predicted(worker, experiment, 3, str(tmp_path / "out"))
        assert "value are medians, not means" in caplog.text and "Add `valid`" not in caplog.text
        assert (
            "Choose days with such labels as `valid` in logs.splits, or set tasks.value.prediction=median"
            in caplog.text
        )
        evaluated = evaluate_on_worker(worker, experiment, LATEST, "valid")
    assert evaluated is not None and evaluated["statistics"] == {"value": "median"}
    assert evaluated["tasks"]["value"]["rmse_log_unit"] is None


def test_the_log_shows_the_metric_in_the_logs_unit_that_training_stops_by(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopping = {"early_stopping": {"metric": "value.rmse_log_unit"}}
    with one_worker() as worker, caplog.at_level(logging.INFO):
        run_on(worker, new_run(tmp_path, **sections(training={"max_steps": 12, **stopping})))
    (line,) = [record.getMessage() for record in caplog.records if "step 12 validation" in record.getMessage()]
    assert line.count("rmse_log_unit") == 1 and "mae_log_unit" not in line and line.endswith("(best so far)")


def test_a_lognormal_loss_needs_no_factors(tmp_path: Path, two_workers: WorkerPool) -> None:
    experiment = new_run(tmp_path, **sections(loss="lognormal", logs={"splits": {"train": [1, 2], "test": [4, 4]}}))
    two_workers.run(run_on, experiment)
    with one_worker() as worker:
        predicted(worker, experiment, 24, str(tmp_path / "one"))
        evaluated = evaluate_on_worker(worker, experiment, LATEST, "test")
    two_workers.run(predicted, experiment, 24, str(tmp_path / "two"))
    assert_equal(rows(tmp_path / "one"), rows(tmp_path / "two"))
    assert evaluated is not None and evaluated["statistics"] == {"value": "mean"} and evaluated["smearing"] == {}
    found = rows(tmp_path / "one")["prediction_value"].to_numpy()
    assert evaluated["tasks"]["value"]["mean_prediction_log_unit"] == pytest.approx(found.mean())


def test_an_evaluation_is_made_again_when_what_predictions_are_changes(run: Experiment, tmp_path: Path) -> None:
    manifest, saved = read_manifest(run.table_folder), checkpoint(run, 24)
    with one_worker() as worker:
        evaluate_on_worker(worker, run, LATEST, "test")
    assert is_evaluated(run, manifest, saved, "test")
    assert not is_evaluated(changed(run, tmp_path, **sections(prediction="median")), manifest, saved, "test")


def test_a_checkpoint_of_an_earlier_version_predicts_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The factors are computed here from the medians of the valid split: all rows, tabs, then tabs and places."""
    copy_of_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    means, medians = (
        load_experiment("experiment.yaml", overrides) for overrides in ([], ["tasks.spent.prediction=median"])
    )
    with one_worker() as worker, caplog.at_level(logging.INFO):
        predict_on_worker(worker, means, LATEST, "test", "means")
        assert "has no factors of its own step that turn medians into means" in caplog.text
        for split in ("valid", "test"):
            predict_on_worker(worker, medians, LATEST, split, f"{split}-medians")
    valid, test, found = (
        pq.read_table(folder).sort_by("row").to_pandas() for folder in ("valid-medians", "test-medians", "means")
    )
    expected = np.full(len(test), factor_of(valid, parent=0, k=0))
    for levels in (["scenario_tab"], ["scenario_tab", "scenario_place"]):
        parents = expected.copy()
        for _, rows_of_scenario in test.groupby(levels):
            same = (valid[levels] == rows_of_scenario[levels].iloc[0]).all(axis=1)
            members = test.index.get_indexer(rows_of_scenario.index)
            if same.any():
                expected[members] = factor_of(valid[same], parent=parents[members[0]], k=300)
    np.testing.assert_allclose(
        found.prediction_spent, ((1 + test.prediction_spent * 0.5) * expected - 1) / 0.5, rtol=1e-4, atol=1e-4
    )


def factor_of(rows: Any, parent: float, k: float) -> float:
    ratio = (1 + rows.label_spent * 0.5).sum() / (1 + rows.prediction_spent * 0.5).sum()
    return float((len(rows) * ratio + k * parent) / (len(rows) + k))
