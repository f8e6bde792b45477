"""The ports of a run that starts its own Ray, and of its workers, are on the loopback interface only."""

import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.ray_folder import NAME
from pipeline.config.experiment import Experiment
from pipeline.config.load import dump_experiment
from tests.commands import start_manygate
from tests.end_to_end.conftest import torchrun
from tests.ports import is_on_loopback, listening, needs_ss
from tests.training.runs import new_run
from tests.workers import ForkServerProcess

pytestmark = [pytest.mark.ray, needs_ss]

ROOT = Path(__file__).resolve().parents[2]
GUARD_S = 240  # for a run that hangs
SECTIONS: dict[str, Any] = {
    "training": {"epochs": 10000, "validate_every_steps": 10**6, "log_every_steps": 5},
    "checkpoint": {"every_steps": 10, "keep_last": 1},
}
PARTS_OF_RAY = ("gcs_server", "raylet", "dashboard.py", "ray::DashboardAgent", "ray::RuntimeEnvAgent")


@pytest.fixture(autouse=True)
def private_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)


def elsewhere(found: set[tuple[str, str]]) -> set[tuple[str, str]]:
    return {(address, command) for address, command in found if not is_on_loopback(address)}


def missing(found: set[tuple[str, str]], parts: tuple[str, ...]) -> list[str]:
    """Parts of which no process listens: the run was not looked at, or is another one than this test expects."""
    return [part for part in parts if not any(part in command for _, command in found)]


def folders_of_ray(found: set[tuple[str, str]]) -> set[Path]:
    return {Path(name) for _, command in found for name in re.findall(rf"(/[^\s=:,]*/{NAME}\w+)", command)}


def end(pid: int) -> None:
    """Ends a process tree, also one that does not end by itself."""
    for process in [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]:
        process.kill()


def wait_for_checkpoint(experiment: Experiment, is_alive: Callable[[], bool]) -> None:
    deadline = time.monotonic() + GUARD_S
    while not list(Path(experiment.checkpoint_folder).glob("step-*/complete.json")):
        assert is_alive() and time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def trained(tmp_path: Path) -> Iterator[tuple[Experiment, str]]:
    experiment, file = new_run(tmp_path, **SECTIONS), tmp_path / "experiment.yaml"
    file.write_text(dump_experiment(experiment))
    yield experiment, str(file)


def finish(process: ForkServerProcess) -> int | None:
    process.join(GUARD_S)
    if process.is_alive():
        end(process.pid)
    return process.exitcode


def test_while_preprocessing(tmp_path: Path) -> None:
    printed = tmp_path / "printed.txt"
    experiment = str(ROOT / "examples/kuairand/experiment.yaml")
    days = "logs.splits={train: [20220425, 20220426], valid: [20220504, 20220504], test: [20220505, 20220505]}"
    process = start_manygate("preprocess", experiment, f"output={tmp_path}/runs", days, output=printed)
    found: set[tuple[str, str]] = set()
    while process.is_alive():
        try:
            found |= set(listening(process.pid))
        except psutil.NoSuchProcess:
            break
        process.join(0.3)
    assert finish(process) == 0, printed.read_text()
    assert elsewhere(found) == set()
    assert missing(found, PARTS_OF_RAY) == []
    assert any(command.startswith("ray::") and "Agent" not in command for _, command in found)  # of tasks


def test_while_two_workers_train_on_ray(trained: tuple[Experiment, str], tmp_path: Path) -> None:
    experiment, file = trained
    printed = tmp_path / "printed.txt"
    process = start_manygate("train", file, "--launcher", "ray", "--workers", "2", output=printed)
    wait_for_checkpoint(experiment, process.is_alive)
    found = set(listening(process.pid))
    scratch = Path(experiment.folder, "ray")
    mode = scratch.stat().st_mode & 0o777
    psutil.Process(process.pid).send_signal(signal.SIGTERM)
    assert finish(process) == 75, printed.read_text()
    assert elsewhere(found) == set()
    assert missing(found, (*PARTS_OF_RAY, "RayTrainWorker")) == []
    assert mode == 0o700 and not scratch.exists()
    [folder] = folders_of_ray(found)
    assert not folder.exists()


def test_while_two_workers_train_under_torchrun(trained: tuple[Experiment, str], tmp_path: Path) -> None:
    experiment, file = trained
    process = torchrun("train", file)
    try:
        wait_for_checkpoint(experiment, lambda: process.poll() is None)
        found = set(listening(process.pid))
    finally:
        end(process.pid)
        process.communicate()
    # The store of torchrun itself is torch's: it has no setting for the interface, also not with --standalone.
    workers = {(address, command) for address, command in found if "torch.distributed.run" not in command}
    assert len(workers) >= 2 and elsewhere(workers) == set()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        *(("127.0.0.1:80", True), ("127.0.1.1%lo:80", True), ("[::1]:80", True), ("[::ffff:127.0.0.1]:80", True)),
        *(("*:80", False), ("0.0.0.0:80", False), ("[::]:80", False), ("192.0.2.1%eth0:80", False)),
        *(("[fe80::1]%eth0:80", False), ("[::ffff:192.0.2.1]:80", False)),
    ],
)
def test_addresses_as_ss_prints_them(address: str, expected: bool) -> None:
    assert is_on_loopback(address) == expected
