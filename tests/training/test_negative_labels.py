"""Negative labels under a loss of amounts: refused before workers start, where the table has counts of its labels."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.train import run
from pipeline.config.experiment import Experiment
from pipeline.config.load import parse_experiment
from pipeline.errors import UserError
from pipeline.preprocess import commit, fit
from pipeline.preprocess.run_table import make_run_table
from pipeline.report.folders import describe_table
from pipeline.table.manifest import read_manifest
from pipeline.table.negative_labels import check_labels, tasks_to_suspect
from tests.old_runs.copies import one_after_the_other
from tests.training.runs import run_on
from tests.workers import one_worker

NEGATIVE = [0.0, -2.5, 8.0, -1.0, 0.5, 3.0]
AMOUNTS = [0.0, 2.5, 8.0, 1.0, 0.5, 3.0]


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in (fit, commit):
        monkeypatch.setattr(stage, "run_tasks", one_after_the_other)


def with_table(folder: Path, train: list[float], valid: list[float], negative: float = 0.0, **keys: Any) -> Experiment:
    """An experiment with its table, whose days have these labels of the task `spent`; rows with a negative label have
    the weight `negative`."""
    for day, spent in enumerate((train, valid), start=1):
        columns = {"user": [1, 2, 3, 1, 2, 3], "place": ["a", "b"] * 3, "click": [1, 0] * 3, "spent": spent}
        columns["weight"] = [1.0 if value >= 0 else negative for value in spent]
        file = folder / f"log/day={day}/part.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), file)
    experiment = of(folder, **keys)
    make_run_table(experiment, True, lambda: None)
    return experiment


def of(folder: Path, loss: str = "ziln", weight: str | None = None) -> Experiment:
    return parse_experiment(
        {
            "name": "test",
            "output": str(folder / "runs"),
            "logs": {
                "path": str(folder / "log"),
                "partition": "day",
                "splits": {"train": [1, 1], "valid": [2, 2]},
                "weight": weight,
            },
            "table": {"lanes": 1},
            "features": [{"name": "user", "column": "user", "kind": "categorical", "ids": {"hash": 9}, "dim": 4}],
            "scenarios": [{"name": "scene", "column": "place", "values": ["a", "b"]}],
            "tasks": [
                {"name": "click", "column": "click", "kind": "binary"},
                {"name": "spent", "column": "spent", "kind": "continuous", "loss": loss},
            ],
            "model": {"bottom": {"kind": "concat"}, "trunk": {"kind": "shared_bottom"}, "head": {"kind": "towers"}},
            "training": {"global_batch_size": 3, "epochs": 1, "device": "cpu"},
            "evaluation": {"batch_size": 3},
        },
        "test",
    )


def train_here(experiment: Experiment) -> str:
    with one_worker() as worker:
        return run_on(worker, experiment)


def without_counts(experiment: Experiment) -> None:
    """Makes the manifest that of an earlier version."""
    file = Path(experiment.table_folder) / "manifest.json"
    document = json.loads(file.read_text())
    for partition in document["partitions"]:
        partition["content"] = None
    file.write_text(json.dumps(document))


@pytest.mark.parametrize("loss", ["ziln", "tweedie"])
def test_train_refuses_negative_labels_and_its_advice_helps(tmp_path: Path, loss: str) -> None:
    experiment = with_table(tmp_path, NEGATIVE, AMOUNTS, loss=loss)
    with pytest.raises(
        UserError,
        match=rf"task spent: the column 'spent' has negative labels \(2 in train\), and the loss {loss} takes only 0 "
        r"or more\. Set tasks\.spent\.loss to mse or huber, or correct these rows in the log and run `manygate preproc",
    ):
        run(experiment, "local", None, "auto")
    assert not (Path(experiment.folder) / "checkpoints").exists()
    for other in ("mse", "huber"):
        check_labels(of(tmp_path, loss=other), read_manifest(experiment.table_folder))
    assert train_here(of(tmp_path, loss="huber")) == "finished"
    corrected = with_table(tmp_path / "corrected", AMOUNTS, AMOUNTS, loss=loss)
    check_labels(corrected, read_manifest(corrected.table_folder))
    assert train_here(corrected) == "finished"


def test_negative_labels_of_other_splits_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    experiment = with_table(tmp_path, AMOUNTS, NEGATIVE)
    caplog.clear()
    check_labels(experiment, read_manifest(experiment.table_folder))
    assert "negative labels (2 in valid)" in caplog.text
    assert train_here(experiment) == "finished"


def test_rows_of_weight_0_are_not_trained_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    experiment = with_table(tmp_path, NEGATIVE, AMOUNTS, weight="weight")
    caplog.clear()
    check_labels(experiment, read_manifest(experiment.table_folder))
    assert "negative labels (2 in train)" in caplog.text
    assert train_here(experiment) == "finished"


def test_negative_labels_that_have_a_weight_are_refused(tmp_path: Path) -> None:
    experiment = with_table(tmp_path, NEGATIVE, AMOUNTS, negative=0.5, weight="weight")
    with pytest.raises(UserError, match=r"negative labels \(2 in train\)"):
        check_labels(experiment, read_manifest(experiment.table_folder))


def test_without_counts_training_stops_and_names_the_task(tmp_path: Path) -> None:
    experiment = with_table(tmp_path, NEGATIVE, AMOUNTS)
    without_counts(experiment)
    manifest = read_manifest(experiment.table_folder)
    check_labels(experiment, manifest)
    assert tasks_to_suspect(experiment, manifest) == ["spent"]
    with pytest.raises(
        UserError,
        match=r"loss of spent is not a finite number: .* or a label of spent is below zero.*whatever the rates",
    ):
        train_here(experiment)


def test_no_label_is_suspected_where_the_counts_exclude_it(tmp_path: Path) -> None:
    for folder, labels, suspects in (("a", AMOUNTS, []), ("b", NEGATIVE, ["spent"])):
        experiment = with_table(tmp_path / folder, labels, NEGATIVE)
        assert tasks_to_suspect(experiment, read_manifest(experiment.table_folder)) == suspects


def test_inspect_shows_what_preprocess_warns_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Except for negative labels: the loss is not part of a table."""
    experiment = with_table(tmp_path, [1.0] * 6, NEGATIVE)
    warned = [record.getMessage() for record in caplog.records if "task spent" in record.getMessage()]
    assert [text.partition(":")[0] for text in warned] == ["task spent", "task spent"]
    described = describe_table(experiment.table_folder)
    assert "task spent: every label of train is 1." in warned and f"\n  {warned[0]}" in described
    assert "spent, negative labels" in described
    without_counts(experiment)
    assert "To look at" not in describe_table(experiment.table_folder)
