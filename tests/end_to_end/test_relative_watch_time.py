"""Whole runs on real logs whose target is the watch time relative to the duration of the video."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipeline.checkpoint.choice import LATEST
from pipeline.config.experiment import Experiment
from pipeline.config.load import dump_experiment, load_experiment
from pipeline.scoring.prediction_files import predict_on_worker
from tests.commands import manygate
from tests.training.runs import run_on
from tests.workers import WorkerPool

RATIO, QUANTILES = re.findall(r"- `(\{name: watch_time.*\})`", Path("examples/kuairand/README.md").read_text())
KEYS = ["user_id", "video_id", "time_ms"]


def trained(sliced: Path, folder: Path, task: str, workers: WorkerPool) -> tuple[Experiment, str]:
    """A run of one epoch on two workers, and what `inspect` prints of its table."""
    experiment = load_experiment(sliced, [f"output={folder}", "training.epochs=1", f"tasks.watch_time={task}"])
    file = folder / "experiment.yaml"
    file.write_text(dump_experiment(experiment))
    manygate("preprocess", str(file), check=0)
    assert workers.run(run_on, experiment) == ["finished", "finished"]
    manygate("evaluate", str(file), "--checkpoint", "latest", check=0)
    return experiment, manygate("inspect", experiment.folder, check=0).out


def predicted(experiment: Experiment, workers: WorkerPool) -> pd.DataFrame:
    """Predictions of the test split, with the columns of the log."""
    out = Path(experiment.folder) / "out"
    workers.run(predict_on_worker, experiment, LATEST, "test", str(out))
    log = log_of(experiment, "20220505")[[*KEYS, "play_time_ms", "duration_ms"]].drop_duplicates(KEYS)
    return pq.read_table(out).to_pandas().merge(log, on=KEYS)


def log_of(experiment: Experiment, days: str) -> pd.DataFrame:
    return pq.read_table(Path(experiment.logs.path) / f"date={days}").to_pandas()


@pytest.fixture(scope="module")
def ratio(
    sliced: Path, two_workers: WorkerPool, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Experiment, str, pd.DataFrame]:
    experiment, inspected = trained(sliced, tmp_path_factory.mktemp("ratio"), RATIO, two_workers)
    return experiment, inspected, predicted(experiment, two_workers)


def test_clipped_labels_are_counted(ratio: tuple[Experiment, str, pd.DataFrame]) -> None:
    experiment, inspected, _ = ratio
    counts = []
    for days in (("20220425", "20220426"), ("20220504",), ("20220505",)):
        rows = pd.concat([log_of(experiment, day) for day in days])
        known = rows[rows["duration_ms"] > 0]
        counts.append(int((known["play_time_ms"] / known["duration_ms"].astype(np.float32) > 1.5).sum()))
    (line,) = [line.split() for line in inspected.splitlines() if "labels above `max`" in line]
    assert line[-3:] == [f"{count:,}" for count in counts] and sum(counts) > 0


def test_predictions_and_labels_are_watch_times(ratio: tuple[Experiment, str, pd.DataFrame]) -> None:
    """In ms, at most 1.5 times the duration for labels, and null where the duration is 0."""
    experiment, _, rows = ratio
    usable = rows["duration_ms"] > 0
    assert len(rows) > 500 and 0 < (~usable).sum() < 50
    np.testing.assert_array_equal(rows["label_watch_time"].isna(), ~usable)
    np.testing.assert_array_equal(rows["prediction_watch_time"].isna(), ~usable)
    clipped = np.minimum(rows["play_time_ms"], 1.5 * rows["duration_ms"])[usable]
    np.testing.assert_allclose(rows["label_watch_time"][usable], clipped, rtol=1e-6)
    evaluation = json.loads((Path(experiment.folder) / "evaluation-test.json").read_text())["tasks"]["watch_time"]
    mean_ratio = (rows["prediction_watch_time"] / rows["duration_ms"])[usable].mean()
    assert evaluation["mean_prediction"] == pytest.approx(mean_ratio, rel=0.02)  # rows with equal keys are dropped here
    assert (rows["prediction_watch_time"][usable] > 0).all()


def test_quantiles_within_groups_of_durations(sliced: Path, two_workers: WorkerPool, tmp_path: Path) -> None:
    """Targets are spread evenly from 0 to 1, and predictions are between the watch times of their groups."""
    experiment, inspected = trained(sliced, tmp_path, QUANTILES, two_workers)
    rows = predicted(experiment, two_workers)
    usable = rows["duration_ms"] > 0
    np.testing.assert_array_equal(rows["prediction_watch_time"].isna(), ~usable)
    train = pd.concat([log_of(experiment, day) for day in ("20220425", "20220426")])
    train = train[train["duration_ms"] > 0]
    # A label above all of its group's is clipped to the largest of them.
    same = np.isclose(rows["label_watch_time"], rows["play_time_ms"], rtol=1e-3, atol=5)[usable]
    assert same.mean() > 0.9
    assert rows["label_watch_time"].max() <= train["play_time_ms"].max()
    assert rows["prediction_watch_time"][usable].between(0, train["play_time_ms"].max()).all()
    mean = train["play_time_ms"].mean()
    (line,) = [line.split() for line in inspected.splitlines() if "watch_time, mean" in line]
    assert float(line[2].replace(",", "")) == pytest.approx(mean, rel=1e-3)
    evaluation = json.loads((Path(experiment.folder) / "evaluation-test.json").read_text())["tasks"]["watch_time"]
    assert (
        0.3 < evaluation["mean_label"] < 0.7
        and evaluation["rows"] == (log_of(experiment, "20220505")["duration_ms"] > 0).sum()
    )
