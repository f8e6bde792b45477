"""Ray restarts workers that die or hang, and continues with fewer workers when machines disappear."""

import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from cluster.connect import keep_to_loopback
from jobs import train
from pipeline.checkpoint.format import complete_checkpoints
from pipeline.config.experiment import Experiment
from pipeline.config.load import dump_experiment
from pipeline.console import configure_logging
from tests.commands import start_manygate
from tests.training.runs import assert_identical, continued, metrics, new_run, run_on, tensors
from tests.workers import ForkServerProcess, WorkerPool, fork

GUARD_S = 240  # for a run that hangs
SECTIONS: dict[str, Any] = {
    "training": {"epochs": 40, "validate_every_steps": 480, "log_every_steps": 10, "hang_timeout_s": 6},
    "checkpoint": {"every_steps": 40, "keep_last": 100},
}
LAST = 480


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
    assert "restart 1" in output and "restart 2" in output and "exactly" in output
    message = r"Worker \d of 2 has made no progress for 6 s \(training.hang_timeout_s\): training step \d+, in the "
    assert re.search(message, output), output
    assert_identical(tensors(straight, LAST, tmp_path), tensors(experiment, LAST, tmp_path))
    assert metrics(experiment) == metrics(straight)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGABRT])
def test_a_killed_worker_without_restarts_left_is_one_sentence(
    straight: Experiment, tmp_path: Path, end: signal.Signals
) -> None:
    """The advice works: the same command then resumes the run."""
    once = {**SECTIONS, "training": {**SECTIONS["training"], "max_restarts": 1}}
    experiment, file, printed = continued(straight, tmp_path, 0, **once), tmp_path / "once.yaml", tmp_path / "printed"
    file.write_text(dump_experiment(experiment))
    process = start_manygate("train", str(file), "--launcher", "ray", "--workers", "2", output=printed)
    for step in (80, 240):
        wait_for_step(experiment, step, process)
        train_workers(process)[-1].send_signal(end)
    process.join(GUARD_S)
    output = printed.read_text()
    lost = r"worker [01] on 127.0.0.1 ended: the process was killed, most likely for lack of memory, or it crashed"
    assert process.exitcode == 2, output
    assert re.search(rf"The workers are started again \(restart 1\): {lost}\n", output), output
    assert re.search(rf"\nmanygate: Training ended, .*, because {lost}\. If memory ran out, ", output)
    assert "Snippet" not in output and "Traceback" not in output
    again = start_manygate("train", str(file), "--launcher", "ray", "--workers", "2", output=printed)
    assert "continuing at step" in finish(again, printed)


def test_a_run_survives_the_loss_of_a_machine(straight: Experiment, tmp_path: Path) -> None:
    """With a range of workers, the run continues on the remaining machine, with the same samples."""
    experiment, printed = fresh(straight, tmp_path), tmp_path / "printed.txt"
    output = finish(fork(lose_a_machine, experiment, output=printed), printed)
    assert "continuing at step" in output and "workers: 2 -> 1" in output
    losses, expected = (
        [record["tasks"]["click"]["loss"] for record in metrics(run) if record["kind"] == "train"]
        for run in (experiment, straight)
    )
    assert len(losses) == LAST // 10 and losses == pytest.approx(expected, rel=0.02)


def lose_a_machine(experiment: Experiment) -> None:
    """Trains on a machine with one CPU and another with two, and loses the second machine during training.

    Three workers do not divide four lanes, so only two of them train.
    """
    keep_to_loopback()
    configure_logging()
    quick = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": quick})
    ray.init(address=cluster.address, log_to_driver=False)
    lost = cluster.add_node(num_cpus=2)

    def lose() -> None:
        wait_for_checkpoint(experiment, 80)
        cluster.remove_node(lost, allow_graceful=False)

    threading.Thread(target=lose, daemon=True).start()
    code = train.run(experiment, "ray", (1, 3), "auto")
    ray.shutdown()
    cluster.shutdown()
    sys.exit(code)


def test_machines_are_added_and_drained_without_a_repeated_step(straight: Experiment, tmp_path: Path) -> None:
    """Workers: 2, then 4 because there is room for four, then 2 because a machine is drained."""
    longer = {**SECTIONS["training"], "epochs": 100, "validate_every_steps": 10**6}
    experiment = continued(straight, tmp_path, 0, training=longer, checkpoint={"every_steps": 40, "keep_last": 100})
    Path(experiment.folder, "metrics.jsonl").unlink()
    printed = tmp_path / "printed.txt"
    output = finish(fork(add_and_drain, experiment, output=printed), printed)
    assert "There is room for 4 workers" in output and "is being taken away in" in output
    assert "workers: 2 -> 4" in output and "workers: 4 -> 2" in output and "restart" not in output
    shown = [int(step) for step in re.findall(r" step (\d+)/1200 ", output)]
    assert shown == list(range(10, 1201, 10))
    losses, expected = (
        [record["tasks"]["click"]["loss"] for record in metrics(run)[:47] if record["kind"] == "train"]
        for run in (experiment, straight)
    )
    assert losses == pytest.approx(expected, rel=0.02)


def add_and_drain(experiment: Experiment) -> None:
    """Trains on two machines with one CPU each, and for a while on a third with two."""
    keep_to_loopback()
    configure_logging()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    os.environ["RAY_ADDRESS"] = cluster.address  # otherwise connecting sets a token, which the cluster does not have
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.add_node(num_cpus=1)
    codes: list[int] = []
    training = threading.Thread(target=lambda: codes.append(train.run(experiment, "ray", (1, 4), "auto")))
    training.start()
    wait_for_checkpoint(experiment, 40)
    third = cluster.add_node(num_cpus=2)
    while all(checkpoint.state().workers != 4 for checkpoint in complete_checkpoints(experiment.checkpoint_folder)):
        time.sleep(0.1)
    drain(cluster, third.node_id)
    training.join()
    ray.shutdown()
    cluster.shutdown()
    sys.exit(codes[0])


def wait_for_checkpoint(experiment: Experiment, step: int) -> None:
    while not (Path(experiment.checkpoint_folder) / f"step-{step:08d}/complete.json").exists():
        time.sleep(0.02)


def drain(cluster: Cluster, node: str) -> None:
    """As a cloud announces that it takes a machine away."""
    preemption = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
    deadline_ms = int((time.time() + 600) * 1000)
    accepted, reason = GcsClient(address=cluster.address).drain_node(node, preemption, "test", deadline_ms)
    assert accepted, reason
