"""Whole runs over a log in which one scenario lacks a task, with weights of rows and down-sampled negatives."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.metrics import log_loss, roc_auc_score

from pipeline.config.experiment import Experiment
from pipeline.config.load import load_experiment
from tests.commands import manygate
from tests.training.runs import assert_identical, metrics, run_on, tensors
from tests.workers import WorkerPool, one_worker

ROWS, KEEP = 12_000, 0.2
SECTIONS: dict[str, Any] = {
    "features": [
        {"name": "user", "column": "user", "kind": "categorical", "ids": {"vocabulary": {}}, "dim": 4},
        {"name": "item", "column": "item", "kind": "categorical", "ids": {"vocabulary": {}}, "dim": 4},
    ],
    "scenarios": [{"name": "tab", "column": "tab", "values": [0, 1], "other": "drop"}],
    "tasks": [
        {"name": "click", "column": "click", "kind": "binary"},
        {"name": "buy", "column": "buy", "kind": "binary", "only": {"tab": [1]}},
        {"name": "stay", "column": "stay", "kind": "continuous", "missing": "skip", "sample_weight": "sure"},
    ],
    "model": {"trunk": {"kind": "star", "hidden": [16], "task_hidden": [8]}, "head": {"kind": "towers", "hidden": []}},
    "training": {
        "global_batch_size": 128,
        "epochs": 4,
        "schedule": {"decay": "cosine"},
        "log_every_steps": 7,
        "dense_optimizer": {"kind": "adam", "lr": 0.01},
        "early_stopping": {"metric": "buy.log_loss", "patience": 100},
    },
    "evaluation": {"batch_size": 256},
    "checkpoint": {"every_steps": 20, "keep_last": 100},
}


def day(number: int) -> pd.DataFrame:
    """Clicks are rare. `buy` is null in tab 0, `stay` where there is no click; clicks have larger weights."""
    rng = np.random.default_rng(number)
    tab, user, item = rng.integers(0, 2, ROWS), rng.integers(0, 20, ROWS), rng.integers(0, 10, ROWS)
    click = rng.random(ROWS) < 1 / (1 + np.exp(2.5 - 0.1 * user - 0.5 * tab))
    buy = (rng.random(ROWS) < 0.05 + 0.04 * item).astype(float)
    return pd.DataFrame(
        {
            "row": np.arange(ROWS) + number * ROWS,
            "tab": tab,
            "user": user,
            "item": item,
            "click": click.astype(int),
            "buy": np.where(tab == 1, buy, np.nan),
            "stay": np.where(click, item + rng.normal(size=ROWS), np.nan),
            "weight": np.where(click, rng.choice([1.0, 2.0], ROWS), rng.choice([0.25, 1.0], ROWS)),
            "sure": rng.random(ROWS),
        }
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, ray_is_up: None) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    for number in (1, 2, 3):
        path = folder / f"log/day={number}/part.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pandas(day(number), preserve_index=False), path)
    logs = {
        "path": str(folder / "log"),
        "partition": "day",
        "splits": {"train": [1, 1], "valid": [2, 2], "test": [3, 3]},
        "keys": ["row"],
        "weight": "weight",
        "negatives": {"task": "click", "keep": KEEP},
    }
    table = {"lanes": 4, "path": str(folder / "table")}
    data = {"name": "straight", "output": str(folder / "runs"), "logs": logs, "table": table, **SECTIONS}
    file = folder / "experiment.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    answer = manygate("preprocess", str(file), check=0)
    assert "sampled out" in answer.out + answer.err
    return file


@pytest.fixture(scope="module")
def straight(file: Path, two_workers: WorkerPool) -> Experiment:
    experiment = load_experiment(file)
    assert two_workers.run(run_on, experiment) == ["finished", "finished"]
    return experiment


@pytest.fixture(scope="module")
def evaluated(file: Path, straight: Experiment) -> dict[str, Any]:
    manygate("evaluate", str(file), "--checkpoint", "latest", check=0)
    found: dict[str, Any] = json.loads((Path(straight.folder) / "evaluation-test.json").read_text())
    return found


def last_step(experiment: Experiment) -> int:
    return int(metrics(experiment)[-1]["step"])


def test_a_resume_in_the_middle_is_exact(
    straight: Experiment, two_workers: WorkerPool, file: Path, tmp_path: Path
) -> None:
    resumed = load_experiment(file, ["name=resumed"])
    shutil.copytree(straight.folder, resumed.folder)
    for checkpoint in (Path(resumed.folder) / "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > 40:
            shutil.rmtree(checkpoint)
    two_workers.run(run_on, resumed)
    end = last_step(straight)
    assert end > 60
    assert_identical(tensors(straight, end, tmp_path), tensors(resumed, end, tmp_path))
    assert metrics(resumed) == metrics(straight)


def test_one_worker_gives_the_same_losses_as_two(straight: Experiment, file: Path) -> None:
    alone = load_experiment(file, ["name=alone"])
    with one_worker() as worker:
        run_on(worker, alone)
    for one, other in zip(metrics(straight), metrics(alone), strict=True):
        for task, measure in (("click", "log_loss"), ("buy", "log_loss"), ("stay", "rmse")):
            name = "loss" if one["kind"] == "train" else measure
            assert other["tasks"][task][name] == pytest.approx(one["tasks"][task][name], rel=5e-3), (one["step"], task)


def test_predictions_are_those_of_the_full_log(evaluated: dict[str, Any]) -> None:
    """Calibration over the whole test day; among the sampled rows, a click is more than twice as frequent.

    The bounds are three standard errors. For clicks, 2,600 on each day and 1,900 negatives, with their weights, give
    0.05. For `buy`, the 0.2 of the rows that are kept with 5 times the weight give 0.08.
    """
    test = day(3)
    tasks = evaluated["tasks"]
    sampled = 1 / (test.click.mean() + (1 - test.click.mean()) * KEEP)
    assert sampled > 2
    assert tasks["click"]["calibration"] == pytest.approx(1, abs=0.15)
    assert tasks["buy"]["calibration"] == pytest.approx(1, abs=0.24)
    assert tasks["stay"]["calibration"] == pytest.approx(1, abs=0.1)


def test_metrics_are_weighted_and_over_the_rows_with_a_label(
    evaluated: dict[str, Any], file: Path, straight: Experiment, tmp_path: Path
) -> None:
    """The numbers of the evaluation from the predictions and the log, with scikit-learn."""
    manygate("predict", str(file), "--checkpoint", "latest", "--output", str(tmp_path / "out"), check=0)
    log = day(3).set_index("row")
    predicted = pq.read_table(tmp_path / "out").to_pandas().set_index("row").loc[log.index]
    assert len(predicted) == ROWS == evaluated["rows"]
    weights = {"click": log.weight, "buy": log.weight, "stay": log.weight * log.sure}
    for task, of_rows in weights.items():
        has_label = log[task].notna()
        assert predicted[f"prediction_{task}"].notna().all()
        np.testing.assert_allclose(predicted[f"label_{task}"], log[task], rtol=1e-5)  # null where there is none
        labels, values = log[task][has_label], predicted[f"prediction_{task}"][has_label]
        cell, w = evaluated["tasks"][task], of_rows[has_label]
        assert cell["rows"] == has_label.sum() and cell["weight"] == pytest.approx(w.sum(), rel=1e-5)
        assert cell["calibration"] == pytest.approx((w * values).sum() / (w * labels).sum(), rel=1e-4)
        if task == "stay":
            assert cell["rmse"] == pytest.approx(np.sqrt(np.average((values - labels) ** 2, weights=w)), rel=1e-4)
        else:
            assert cell["log_loss"] == pytest.approx(log_loss(labels, values, sample_weight=w), rel=1e-4)
            assert cell["auc"] == pytest.approx(roc_auc_score(labels, values, sample_weight=w), rel=1e-4)
    lacking = evaluated["tasks"]["buy"]["scenarios"]["tab=0"]
    assert (lacking["rows"], lacking["weight"], lacking["auc"]) == (0, 0.0, None)
    assert evaluated["reliability"]["buy"].keys() == {"all", "tab=1"}


def test_the_report_shows_rows_and_weights(evaluated: dict[str, Any], file: Path, straight: Experiment) -> None:
    manygate("report", str(file), check=0)
    page = (Path(straight.folder) / "report.html").read_text()
    assert "no rows with a label" in page and ">weight<" in page.replace("\n", "").replace(" ", "")


def test_models_are_compared_with_references_of_the_tasks_that_a_scenario_has(file: Path, tmp_path: Path) -> None:
    flags = ["--variant", "base: training.epochs=1", "--seeds", "0", "--reference"]
    manygate("compare", str(file), *flags, f"output={tmp_path}", check=0)
    comparison = json.loads((tmp_path / "straight/compare.json").read_text())
    cells = comparison["reference"]
    assert {task: set(of_task) for task, of_task in cells.items()} == {
        "click": {"tab=0", "tab=1"},
        "buy": {"tab=1"},
        "stay": {"tab=0", "tab=1"},
    }
    assert comparison["variants"]["base"]["tasks"]["buy"]["tab=0"]["mean"] is None
