"""Ray starts workers again that died or hang, and goes on with fewer when machines disappear."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.config.experiment import Experiment
from pipeline.config.load import dump_experiment
from tests.end_to_end.conftest import ROOT
from tests.training.runs import assert_identical, continued, metrics, new_run, run_on, tensors
from tests.workers import WorkerPool

GUARD_S = 240  # for a run that hangs
SECTIONS: dict[str, Any] = {
    "training": {"epochs": 40, "validate_every_steps": 480, "log_every_steps": 10, "hang_timeout_s": 6},
    "checkpoint": {"every_steps": 40, "keep_last": 100},
}
LAST = 480
# One machine of one CPU and one of two, the second of which is lost in the middle. Three workers do not divide four
# lanes, so two of them train.
LOSE_A_MACHINE = """
import sys, threading, time
from pathlib import Path
from cluster.connect import keep_to_loopback
keep_to_loopback()
import ray
from ray.cluster_utils import Cluster
from jobs import train
from pipeline.config.load import load_experiment
from pipeline.console import configure_logging

configure_logging()
experiment = load_experiment(sys.argv[1])
quick = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": quick})
ray.init(address=cluster.address, log_to_driver=False)
lost = cluster.add_node(num_cpus=2)

def lose():
    while not (Path(experiment.checkpoint_folder) / "step-00000080/complete.json").exists():
        time.sleep(0.05)
    cluster.remove_node(lost, allow_graceful=False)

threading.Thread(target=lose, daemon=True).start()
code = train.run(experiment, "ray", (1, 3), "auto")
ray.shutdown()
cluster.shutdown()
sys.exit(code)
"""


@pytest.fixture(scope="module")
def straight(two_workers: WorkerPool, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    experiment = new_run(tmp_path_factory.mktemp("straight"), **SECTIONS)
    two_workers.run(run_on, experiment)
    return experiment


def start(straight: Experiment, folder: Path, *command: str) -> tuple[Experiment, subprocess.Popen[str]]:
    """A fresh run of the same experiment, begun in a process of its own; the file of the experiment is added."""
    experiment = continued(straight, folder, 0, **SECTIONS)
    Path(experiment.folder, "metrics.jsonl").unlink()
    file = folder / "experiment.yaml"
    file.write_text(dump_experiment(experiment))
    process = subprocess.Popen(
        [sys.executable, *command, str(file)], cwd=ROOT, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True
    )
    return experiment, process


def finish(process: subprocess.Popen[str]) -> str:
    try:
        told = process.communicate(timeout=GUARD_S)[0]
    except subprocess.TimeoutExpired:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        raise
    assert process.returncode == 0, told
    return told


def wait_for_step(experiment: Experiment, step: int, process: subprocess.Popen[str]) -> None:
    marker = Path(experiment.checkpoint_folder) / f"step-{step:08d}/complete.json"
    deadline = time.monotonic() + GUARD_S
    while not marker.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def train_workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Ray's training workers below a driver, oldest first."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if child.is_running() and "RayTrainWorker" in "".join(child.cmdline())]


def test_a_worker_killed_and_a_worker_that_hangs(straight: Experiment, tmp_path: Path) -> None:
    """SIGKILL, and SIGSTOP, which the others' watchdogs see. In the end bit by bit the run that was left alone."""
    experiment, process = start(straight, tmp_path, "-c", RUN_ON_RAY)
    wait_for_step(experiment, 80, process)
    train_workers(process)[-1].send_signal(signal.SIGKILL)
    wait_for_step(experiment, 200, process)
    train_workers(process)[-1].send_signal(signal.SIGSTOP)
    told = finish(process)
    assert "restart 1" in told and "restart 2" in told and "exactly" in told
    told_hang = r"Worker \d of 2 has made no progress for 6 s \(training.hang_timeout_s\): training step \d+, in the "
    assert re.search(told_hang, told), told
    assert_identical(tensors(straight, LAST, tmp_path), tensors(experiment, LAST, tmp_path))
    assert metrics(experiment) == metrics(straight)


RUN_ON_RAY = """
import sys
from jobs.cli import main
sys.exit(main(["train", sys.argv[1], "--launcher", "ray", "--workers", "2"]))
"""


def test_a_machine_disappears(straight: Experiment, tmp_path: Path) -> None:
    """Workers as a range: the run goes on with what is left, with the same samples."""
    experiment, process = start(straight, tmp_path, "-c", LOSE_A_MACHINE)
    told = finish(process)
    assert "going on at step" in told and "workers: 2 -> 1" in told
    losses, expected = (
        [record["tasks"]["click"]["loss"] for record in metrics(run) if record["kind"] == "train"]
        for run in (experiment, straight)
    )
    assert len(losses) == LAST // 10 and losses == pytest.approx(expected, rel=0.02)
