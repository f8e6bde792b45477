"""End-to-end runs on real logs: from raw Parquet to predictions, killed and resumed, on every launcher."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from sklearn.metrics import log_loss, mean_absolute_error, roc_auc_score, root_mean_squared_error

from jobs.cli import main
from pipeline.checkpoint.choice import BEST
from pipeline.config.load import dump_experiment, load_experiment
from pipeline.scoring.prediction_files import predict_on_worker
from pipeline.table.manifest import read_manifest
from pipeline.workers.stop import INTERRUPTED_EXIT_CODE
from tests.commands import manygate, start_manygate
from tests.end_to_end.conftest import DAYS, ROWS, finish, torchrun
from tests.training.runs import assert_identical, metrics, run_on, tensors
from tests.workers import WorkerPool

STEPS = 38  # 1,200 rows in batches of 64, twice


@pytest.fixture(scope="module")
def straight(sliced: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run, on two workers of torchrun."""
    file = new_run(sliced, tmp_path_factory.mktemp("straight"))
    finish(torchrun("train", str(file)))
    return file


def new_run(sliced: Path, folder: Path) -> Path:
    """A separate run with a copy of the slice's table."""
    experiment = load_experiment(sliced, [f"output={folder}"])
    shutil.copytree(load_experiment(sliced).folder + "/table", experiment.folder + "/table")
    file = folder / "experiment.yaml"
    file.write_text(dump_experiment(experiment))
    return file


def assert_same_run(one: Path, two: Path, scratch: Path) -> None:
    first, second = load_experiment(one), load_experiment(two)
    assert_identical(tensors(first, STEPS, scratch), tensors(second, STEPS, scratch))
    assert metrics(first) == metrics(second)


def test_the_table_contains_the_slice(sliced: Path) -> None:
    manifest = read_manifest(load_experiment(sliced).folder + "/table")
    assert [p.value for p in manifest.partitions] == list(DAYS)
    assert all(p.rows_read == p.kept + p.quarantined + p.filtered + p.sampled_out == ROWS for p in manifest.partitions)


def test_a_run_that_was_killed_twice_ends_as_an_undisturbed_run(
    sliced: Path, straight: Path, two_workers: WorkerPool, tmp_path: Path
) -> None:
    """Kills both workers with SIGKILL after a checkpoint, and again after a checkpoint of the resumed run."""
    file = new_run(sliced, tmp_path)
    experiment = load_experiment(file)
    for step in (7, 21):
        pool = WorkerPool(2)
        pool.start(run_on, experiment)
        wait_for(Path(experiment.folder) / f"checkpoints/step-{step:08d}/complete.json", pool.is_alive)
        pool.close()
    two_workers.run(run_on, experiment)
    assert_same_run(straight, file, tmp_path)


def wait_for(file: Path, is_alive: Callable[[], bool]) -> None:
    """Waits for a file of a run in progress."""
    deadline = time.monotonic() + 120
    while not file.exists():
        assert is_alive() and time.monotonic() < deadline
        time.sleep(0.01)


def test_a_ray_run_that_was_stopped_resumes_as_the_same_run(
    sliced: Path, straight: Path, two_workers: WorkerPool, tmp_path: Path
) -> None:
    """After SIGTERM to the driver, workers save and it exits with 75. Resumed, the run equals torchrun's bit by bit."""
    file, printed = new_run(sliced, tmp_path), tmp_path / "printed.txt"
    command = ["train", str(file), "--launcher", "ray", "--workers", "2"]
    with pytest.MonkeyPatch.context() as patch:  # a driver that joins the Ray of these tests
        patch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
        process = start_manygate(*command, output=printed)
    wait_for(Path(load_experiment(file).folder) / "checkpoints/step-00000007/complete.json", process.is_alive)
    process.terminate()
    process.join(120)
    assert process.exitcode == INTERRUPTED_EXIT_CODE and "Training interrupted" in printed.read_text()
    assert two_workers.run(run_on, load_experiment(file)) == ["finished", "finished"]
    assert_same_run(straight, file, tmp_path)


def test_evaluation_and_predictions_agree_on_every_launcher(
    straight: Path, two_workers: WorkerPool, tmp_path: Path
) -> None:
    """One process and two give the same metrics, and scikit-learn computes the same from the written predictions."""
    experiment = load_experiment(straight)
    result = Path(experiment.folder) / "evaluation-test.json"
    printed = manygate("evaluate", str(straight), "--checkpoint", "latest", check=0).out
    alone = json.loads(result.read_text())
    assert "click (binary)" in printed and "tab=other" in printed
    finish(torchrun("evaluate", str(straight), "--checkpoint", "latest"))
    both = json.loads(result.read_text())
    curves = alone.pop("reliability"), both.pop("reliability")  # bin edges may move by one row
    assert [sum(curve["click"]["all"]["rows"]) for curve in curves] == [ROWS, ROWS]
    assert_close(alone, both)
    assert alone["checkpoint"].endswith(f"step-{STEPS:08d}") and alone["split"] == "test" and alone["rows"] == ROWS

    assert two_workers.run(predict_on_worker, experiment, BEST, "test", str(tmp_path / "out")) == [ROWS, None]
    rows = pq.read_table(tmp_path / "out").to_pandas()
    assert len(rows) == ROWS == json.loads((tmp_path / "out/_predictions.json").read_text())["rows"]
    log = pq.read_table(Path(experiment.logs.path) / "date=20220505").to_pandas()
    keys = ["user_id", "video_id", "time_ms"]
    assert sorted(map(tuple, rows[keys].to_numpy())) == sorted(map(tuple, log[keys].to_numpy()))
    np.testing.assert_allclose(sorted(rows["label_watch_time"]), sorted(log["play_time_ms"]), rtol=1e-4, atol=0.01)
    for task in ("click", "long_view"):
        label, score = rows[f"label_{task}"], rows[f"prediction_{task}"].astype(np.float64)
        assert alone["tasks"][task]["auc"] == pytest.approx(roc_auc_score(label, score), abs=1e-4)
        assert alone["tasks"][task]["log_loss"] == pytest.approx(log_loss(label, score), abs=1e-4)
        cell = rows["scenario_tab"] == "tab=1"
        expected = roc_auc_score(label[cell], score[cell])
        assert alone["tasks"][task]["scenarios"]["tab=1"]["auc"] == pytest.approx(expected, abs=1e-4)
    watched, label, value = alone["tasks"]["watch_time"], rows["label_watch_time"], rows["prediction_watch_time"]
    assert alone["statistics"] == {"watch_time": "mean"}
    assert watched["calibration_log_unit"] == pytest.approx(value.sum() / label.sum(), rel=1e-3)
    assert watched["rmse_log_unit"] == pytest.approx(root_mean_squared_error(label, value), rel=1e-3)
    assert watched["mae_log_unit"] == pytest.approx(mean_absolute_error(label, value), rel=1e-3)


def assert_close(one: Any, two: Any) -> None:
    """Equal up to rounding: sums over shards differ in the last bits between one and two workers."""
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_close(one[key], two[key])
    elif isinstance(one, list):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_close(a, b)
    elif isinstance(one, float):
        assert two == pytest.approx(one, rel=1e-3, abs=1e-4)
    else:
        assert one == two


def test_inspect_describes_the_run(straight: Path) -> None:
    printed = manygate("inspect", load_experiment(straight).folder, check=0).out
    assert "train: 2 partitions, 1,200 = 1,200 + 0 + 0 rows" in printed
    assert f"step-{STEPS:08d}" in printed and "saved by 2 workers" in printed


def test_plan_shows_the_placement_of_tables_and_whether_they_fit(straight: Path) -> None:
    printed = manygate("plan", str(straight), "--workers", "4", "--device", "cuda", "--memory", "80GiB", check=0).out
    assert "Fits: at most" in printed and "video" in printed
    refused = manygate("plan", str(straight), "--workers", "4", "--memory", "1MiB", check=2)
    assert "does not fit" in refused.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["preprocess", "logs.path=/nowhere"], "/nowhere"),
        (["preprocess", "features.hour.column=hourmim"], "hourmim"),
        (["preprocess", "logs.splits.test=[20230101, 20230102]"], "test"),
        (["train", "--resume", "/nowhere"], "/nowhere is not a complete checkpoint"),
        (["train", "--workers", "2"], "2 were requested"),
        (["evaluate", "--split", "tset"], "no split 'tset'; it has: train, valid, test"),
        (["evaluate", "--checkpoint", "latest", "model.trunk.experts=3"], "is of another model"),
        (["train", "training.epoch=3"], "unknown key; did you mean 'epochs'?"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    straight: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    command, *rest = arguments
    before = contents(straight)
    assert main([command, str(straight), *rest]) == 2
    printed = capsys.readouterr().err
    assert message in printed and "Traceback" not in printed
    assert contents(straight) == before, "nothing half-written"


def contents(file: Path) -> list[Path]:
    return sorted(Path(load_experiment(file).folder).rglob("*"))


def test_too_many_workers_for_the_cluster_are_an_error_instead_of_an_endless_wait(straight: Path) -> None:
    before = contents(straight)
    done = manygate("train", str(straight), "--launcher", "ray", "--workers", "8", check=2)
    assert "8 workers need 8 CPU; the Ray of this machine has room for 2:" in done.err and "Traceback" not in done.err
    assert contents(straight) == before
