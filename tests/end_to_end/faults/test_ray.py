"""Ray restarts workers that die or hang. Machines that come and go: tests/machines."""

import re
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.config.experiment import Experiment
from pipeline.config.load import dump_experiment
from tests.commands import start_manygate
from tests.training.runs import assert_identical, continued, metrics, new_run, run_on, tensors
from tests.workers import ForkServerProcess, WorkerPool

GUARD_S = 240  # for a run that hangs
SECTIONS: dict[str, Any] = {
    "training": {"epochs": 40, "validate_every_steps": 480, "log_every_steps": 10, "hang_timeout_s": 6},
    "checkpoint": {"every_steps": 40, "keep_last": 100},
}
LAST = 480
LOST = r"worker [01] on 127.0.0.1 ended: the process was killed, most likely for lack of memory, or it crashed"


@pytest.fixture(autouse=True)
def quick_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes Ray Train check its workers more often, and wait less for the workers of a lost machine."""
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")


@pytest.fixture(scope="module")
def straight(two_workers: WorkerPool, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    experiment = new_run(tmp_path_factory.mktemp("straight"), **SECTIONS)
    two_workers.run(run_on, experiment)
    return experiment


def fresh(straight: Experiment, folder: Path) -> Experiment:
    """A run of the same experiment that has not started."""
    experiment = continued(straight, folder, 0, **SECTIONS)
    Path(experiment.folder, "metrics.jsonl").unlink()
    return experiment


def finish(process: ForkServerProcess, printed: Path) -> str:
    process.join(GUARD_S)
    if process.is_alive():
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
    assert process.exitcode == 0, printed.read_text()
    return printed.read_text()


def wait_for_step(experiment: Experiment, step: int, process: ForkServerProcess) -> None:
    marker = Path(experiment.checkpoint_folder) / f"step-{step:08d}/complete.json"
    deadline = time.monotonic() + GUARD_S
    while not marker.exists():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.02)


def train_workers(process: ForkServerProcess) -> list[psutil.Process]:
    """Ray's training workers below a driver, oldest first."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if child.is_running() and "RayTrainWorker" in "".join(child.cmdline())]


def test_a_run_survives_a_killed_worker_and_a_hanging_worker(straight: Experiment, tmp_path: Path) -> None:
    """SIGKILL, and SIGSTOP, which the other workers' watchdogs detect. The result is that of an undisturbed run."""
    experiment, file, printed = fresh(straight, tmp_path), tmp_path / "experiment.yaml", tmp_path / "printed.txt"
    file.write_text(dump_experiment(experiment))
    process = start_manygate("train", str(file), "--launcher", "ray", "--workers", "2", output=printed)
    wait_for_step(experiment, 80, process)
    train_workers(process)[-1].send_signal(signal.SIGKILL)
    wait_for_step(experiment, 200, process)
    train_workers(process)[-1].send_signal(signal.SIGSTOP)
    output = finish(process, printed)
    assert re.search(rf"The workers are started again \(restart 1\): {LOST}\n", output), output
    assert "restart 2" in output and "exactly" in output
    message = r"Worker \d of 2 has made no progress for 6 s \(training.hang_timeout_s\): training step \d+, in the "
    assert re.search(message, output), output
    assert_identical(tensors(straight, LAST, tmp_path), tensors(experiment, LAST, tmp_path))
    assert metrics(experiment) == metrics(straight)


def test_a_crash_of_a_worker_without_restarts_left_is_one_sentence(straight: Experiment, tmp_path: Path) -> None:
    """The advice works: the same command then resumes the run."""
    never = {**SECTIONS, "training": {**SECTIONS["training"], "max_restarts": 0}}
    experiment, file, printed = continued(straight, tmp_path, 0, **never), tmp_path / "never.yaml", tmp_path / "printed"
    file.write_text(dump_experiment(experiment))
    process = start_manygate("train", str(file), "--launcher", "ray", "--workers", "2", output=printed)
    wait_for_step(experiment, 240, process)
    train_workers(process)[-1].send_signal(signal.SIGABRT)
    process.join(GUARD_S)
    output = printed.read_text()
    assert process.exitcode == 2, output
    assert re.search(rf"\nmanygate: Training ended, .*, because {LOST}\. If memory ran out, ", output)
    assert "Snippet" not in output and "Traceback" not in output
    again = start_manygate("train", str(file), "--launcher", "ray", "--workers", "2", output=printed)
    assert "continuing at step" in finish(again, printed)
