"""`manygate pipeline`: what is done is skipped, what has changed is made again, what was interrupted continues."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config.load import dump_experiment, load_experiment
from pipeline.workers.stop import INTERRUPTED_EXIT_CODE
from tests.commands import manygate, start_manygate
from tests.workers import ForkServerProcess

OVERRIDES = ["training.max_steps=4", "training.log_every_steps=2", "training.validate_every_steps=2"]
FIRST = {"train": [20220425, 20220425], "valid": [20220426, 20220426], "test": [20220504, 20220504]}
STAGES = ("preprocessing", "training", "evaluation", "report")
GUARD_S = 240


@pytest.fixture
def file(sliced: Path, tmp_path: Path) -> Path:
    """An experiment over the first days of the slice, with its own run."""
    experiment = load_experiment(sliced, [f"output={tmp_path}", "name=daily", "table.encoders=extend", *OVERRIDES])
    file = tmp_path / "experiment.yaml"
    file.write_text(dump_experiment(experiment))
    change(file, logs={"splits": FIRST}, training={"early_stopping": {"metric": "click.auc", "patience": 9}})
    return file


def change(file: Path, **sections: Any) -> None:
    data = yaml.safe_load(file.read_text())
    for name, value in sections.items():
        data[name] = {**data[name], **value}
    file.write_text(yaml.safe_dump(data, sort_keys=False))


def made(file: Path, *flags: str) -> list[str]:
    """The stages that a run of the pipeline did not skip."""
    out = manygate("pipeline", str(file), *flags, check=0).out
    assert [out.index(f"[{i}/4] {stage}: ") for i, stage in enumerate(STAGES, 1)]
    return [stage for stage in STAGES if f"{stage}: done already" not in out]


def evaluated(folder: Path, split: str = "test") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"evaluation-{split}.json").read_text())
    return found


def test_only_what_is_not_done_is_made(file: Path) -> None:
    folder = Path(load_experiment(file).folder)
    assert made(file) == list(STAGES)
    best = json.loads((folder / "checkpoints/step-00000004/state.json").read_text())["progress"]["best_step"]
    assert evaluated(folder)["checkpoint"].endswith(f"step-{best:08d}")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert made(file) == []
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before

    (folder / "evaluation-test.json").unlink()
    assert made(file) == ["evaluation", "report"]
    assert made(file, "--split", "valid", "--checkpoint", "latest") == ["evaluation", "report"]
    assert evaluated(folder, "valid")["checkpoint"].endswith("step-00000004")
    assert made(file) == []

    change(file, evaluation={"batch_size": 256})
    assert made(file) == ["evaluation", "report"]
    change(file, logs={"splits": {**FIRST, "test": [20220504, 20220505]}})  # new days of the test split only
    assert made(file) == ["preprocessing", "evaluation", "report"]
    change(file, training={"max_steps": 6})
    assert made(file) == ["training", "evaluation", "report"]
    splits = {"train": [20220425, 20220426], "valid": [20220504, 20220504], "test": [20220505, 20220505]}
    change(file, logs={"splits": splits})
    assert made(file) == list(STAGES)
    assert (folder / "checkpoints/step-00000012/complete.json").exists()
    assert made(file) == []


def test_an_interrupted_pipeline_continues(file: Path, tmp_path: Path) -> None:
    """SIGTERM during preprocessing, then during training."""
    change(file, training={"max_steps": 2000, "epochs": 500, "log_every_steps": 10}, checkpoint={"every_steps": 5})
    printed = tmp_path / "printed.txt"
    folder = Path(load_experiment(file).folder)
    assert interrupt(file, printed, lambda: "Ray: started" in printed.read_text()) == INTERRUPTED_EXIT_CODE
    assert "The same command continues here." in printed.read_text()
    assert not (folder / "checkpoints").exists()

    manygate("preprocess", str(file), check=0)
    marker = folder / "checkpoints/step-00000005/complete.json"
    assert interrupt(file, printed, marker.exists) == INTERRUPTED_EXIT_CODE
    assert "[1/4] preprocessing: done already" in printed.read_text()
    reached = max(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*"))
    change(file, training={"max_steps": reached + 2})
    answer = manygate("pipeline", str(file), check=0)
    assert f"continuing at step {reached} " in answer.err and "[4/4] report: started" in answer.out
    assert made(file) == []


def test_a_pipeline_stops_after_an_interrupted_evaluation_on_ray(file: Path, tmp_path: Path) -> None:
    """Ray's workers do not look at a SIGTERM while they evaluate: they finish, and the report is not made."""
    folder, printed = Path(load_experiment(file).folder), tmp_path / "printed.txt"
    manygate("preprocess", str(file), check=0)
    manygate("train", str(file), check=0)

    def is_evaluating() -> bool:
        return "Workers: 1 on" in printed.read_text()

    flags = ("--launcher", "ray", "--workers", "1")
    assert interrupt(file, printed, is_evaluating, *flags) == INTERRUPTED_EXIT_CODE
    assert "Interrupted. The same command continues here." in printed.read_text()
    assert "[4/4] report" not in printed.read_text()
    assert evaluated(folder)["rows"] > 0
    assert made(file) == ["report"]


def interrupt(file: Path, printed: Path, is_time: Any, *flags: str) -> int | None:
    """Starts the pipeline in a process, sends SIGTERM when it is time, and returns the exit code."""
    printed.write_text("")
    process: ForkServerProcess = start_manygate("pipeline", str(file), *flags, output=printed)
    deadline = time.monotonic() + GUARD_S
    while not is_time():
        assert process.is_alive() and time.monotonic() < deadline, printed.read_text()
        time.sleep(0.02)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    process.join(GUARD_S)
    return process.exitcode


def test_wrong_flags_are_refused_before_anything_is_made(file: Path) -> None:
    assert "it has train, valid, test" in manygate("pipeline", str(file), "--split", "other", check=2).err
    for command in ("pipeline", "compare"):
        refused = manygate(command, str(file), "--launcher", "ray", "--workers", "3", check=2).err
        assert "--workers 3: the workers must divide the 8 lanes" in refused
    assert not Path(load_experiment(file).folder).exists()
