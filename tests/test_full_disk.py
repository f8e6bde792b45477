"""A disk that is full is called that, whatever was being written, and with more space the same command continues."""

import errno
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.checkpoint.format import complete_checkpoints
from pipeline.config.experiment import Experiment
from pipeline.errors import UserError
from pipeline.preprocess import commit, fit
from pipeline.preprocess.job import preprocess
from tests.commands import manygate
from tests.old_runs.copies import STEPS, copy_of_run, one_after_the_other
from tests.preprocess import logs
from tests.preprocess.logs import digests
from tests.training.runs import assert_identical, continued, new_run, run_on, tensors
from tests.workers import WorkerPool, one_worker

SIZE = 5_000_000
SECTIONS: dict[str, Any] = {"checkpoint": {"every_steps": 5, "keep_last": 100}}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 5 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("needs root, and the right to mount a disk in memory")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, left: int) -> Path:
    """Writes a file that leaves this many bytes; with 0, until the disk takes no more."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while (room := free(disk) - left) > 0:
                file.write(bytes(min(room, 4096)))
        except OSError as error:
            assert error.errno == errno.ENOSPC
    return ballast


def free(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def test_a_document_stays_as_it_was(disk: Path) -> None:
    file = disk / "run/a.json"
    storage.write_text(str(file), "old")
    ballast = fill(disk, 0)
    expected = f"^No space is left on {disk}, where {file} is. Free some space, then run the same command again.$"
    with pytest.raises(UserError, match=expected):
        storage.write_text(str(file), "new" * 10_000)
    assert file.read_text() == "old" and list(file.parent.iterdir()) == [file]
    ballast.unlink()
    storage.write_text(str(file), "new" * 10_000)


def test_a_quota_is_called_that(tmp_path: Path) -> None:
    uri = str(tmp_path / "new/file")
    with (
        pytest.raises(UserError, match=rf"^The quota is used up on .*, where {uri} is. Free some space"),
        storage.store_errors(uri),
    ):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")


def test_other_errors_are_not_called_a_full_disk(tmp_path: Path) -> None:
    error = PermissionError(errno.EACCES, "Permission denied")
    assert storage.full_disk(str(tmp_path / "x"), error) is None
    assert storage.full_disk("memory://x", error) is None
    with pytest.raises(PermissionError), storage.store_errors("x"):
        raise error


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, two_workers: WorkerPool) -> Experiment:
    """Runs with one and with two workers whose disks had room."""
    experiment = new_run(tmp_path_factory.mktemp("straight"), **SECTIONS)
    assert two_workers.run(run_on, experiment) == ["finished", "finished"]
    return experiment


def warnings(worker: Any, experiment: Experiment) -> tuple[str | None, list[str]]:
    """Trains on this worker; returns the error that ended the run, and its warnings."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("pipeline").addHandler(handler)
    try:
        run_on(worker, experiment)
    except UserError as error:
        return str(error), lines
    finally:
        logging.getLogger("pipeline").removeHandler(handler)
    return None, lines


def test_a_run_on_a_disk_that_fills_up(
    disk: Path, straight: Experiment, two_workers: WorkerPool, tmp_path: Path
) -> None:
    """Failed saves leave nothing, complete checkpoints stay, and the same command finishes the run."""
    experiment = continued(straight, disk, 0, **SECTIONS)
    (Path(experiment.folder) / "metrics.jsonl").unlink()
    folder = Path(experiment.checkpoint_folder)
    size = sum(file.stat().st_size for file in (Path(straight.checkpoint_folder) / "step-00000005").rglob("*"))
    ballast = fill(disk, int(2.5 * size))
    (error, lines), _ = two_workers.run(warnings, experiment)
    assert error is not None and error.startswith("Training ended at step 24, but its checkpoint could not be saved")
    failed = [line for line in lines if "could not be saved" in line]
    assert failed and all(
        f"could not be saved: no space is left on {disk}, where {folder}/step-" in line for line in failed
    )
    saved = complete_checkpoints(str(folder))
    assert 1 <= len(saved) <= 2
    assert {path.name for path in folder.iterdir()} == {Path(checkpoint.uri).name for checkpoint in saved}
    assert free(disk) > 0.2 * size, "the half-written checkpoint is gone"
    ballast.unlink()
    assert two_workers.run(run_on, experiment) == ["finished", "finished"]
    assert_identical(tensors(straight, 24, tmp_path), tensors(experiment, 24, tmp_path))


def test_a_save_deletes_only_its_own_folder(disk: Path) -> None:
    """What cannot be a folder of a checkpoint stays: nothing was written there."""
    experiment = new_run(disk, checkpoint={"every_steps": 5, "keep_last": 100}, training={"max_steps": 6})
    blocked = Path(experiment.checkpoint_folder) / "step-00000005"
    blocked.parent.mkdir()
    blocked.write_text("in the way")
    with one_worker() as worker:
        error, lines = warnings(worker, experiment)
    assert error is None and any("The checkpoint of step 5 could not be saved" in line for line in lines)
    assert not any("no space" in line for line in lines) and blocked.read_text() == "in the way"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    logs.write_log(tmp_path / "log", rows=400)
    logs.write_side(tmp_path / "side.parquet")
    return tmp_path


def assert_preprocess_continues(log: Path, disk: Path, room: int) -> None:
    experiment, table = logs.experiment(log), disk / "table"
    ballast = fill(disk, room)
    with pytest.raises(UserError, match=rf"^No space is left on {disk}, where {table}/\S+ is. Free some space, then"):
        preprocess(experiment, str(table))
    assert not (table / "manifest.json").exists()
    ballast.unlink()
    preprocess(experiment, str(table))
    preprocess(experiment, str(log / "expected"))
    assert digests(table) == digests(log / "expected")


@pytest.mark.parametrize("room", [0, 8192, 40_000, 120_000])
def test_preprocessing_on_a_full_disk(disk: Path, log: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    for stage in (fit, commit):
        monkeypatch.setattr(stage, "run_tasks", one_after_the_other)
    assert_preprocess_continues(log, disk, room)


def test_preprocessing_on_a_full_disk_in_ray(disk: Path, log: Path, ray_is_up: None) -> None:
    assert_preprocess_continues(log, disk, 120_000)


@pytest.mark.whole_run
def test_commands_on_a_full_disk_end_with_one_sentence(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_of_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    ballast = fill(disk, 8192)
    checkpoint = f"run/checkpoints/step-{STEPS[1]:08d}"
    predict = ("predict", "experiment.yaml", "--checkpoint", checkpoint, "--output", str(disk / "predictions"))
    train = ("train", "experiment.yaml", f"output={disk}", "table.path=run/table")
    for command in (predict, train):
        answer = manygate(*command, check=2)
        assert answer.err.splitlines()[-1].startswith(f"manygate: No space is left on {disk}, where "), answer.err
        assert "Traceback" not in answer.err
    ballast.unlink()
    for command in (predict, train):
        manygate(*command, check=0)
