"""Copies of runs that earlier versions made, for tests to continue."""

import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.experiment import Experiment
from pipeline.config.load import load_experiment
from pipeline.preprocess.tasks import Done

FIRST = Path(__file__).resolve().parent / "0.1.0"
STEPS = (8, 12)  # of its checkpoints: one in the second epoch, and the last one
GROWN_SPLITS = {"train": [1, 3], "valid": [4, 4], "test": [5, 5]}


def copy_of_run(folder: Path) -> None:
    """Copies the first version's run into a folder, which must become the working directory: its paths are relative."""
    shutil.copytree(FIRST, folder, dirs_exist_ok=True)
    with tarfile.open(folder / "checkpoints.tar.xz") as packed:
        packed.extractall(folder, filter="data")


def first_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first version's run without its tensors, copied into a folder that becomes the working directory."""
    shutil.copytree(FIRST, folder, dirs_exist_ok=True)
    monkeypatch.chdir(folder)
    return folder / "run"


def with_next_day(folder: Path) -> Experiment:
    """The experiment of a copy one day later: each split moves forward by one day."""
    shutil.copytree(folder / "next_day", folder / "log", dirs_exist_ok=True)
    splits = ", ".join(f"{name}: {bounds}" for name, bounds in GROWN_SPLITS.items())
    return load_experiment(folder / "experiment.yaml", [f"logs.splits={{{splits}}}"])


def one_after_the_other(task: Any, items: list[dict[str, Any]], shared: Any, memory: int | None) -> Iterator[Done]:
    """Runs tasks of preprocessing in this process instead of in Ray."""
    for item in items:
        yield Done(item, task(item, shared), None)
