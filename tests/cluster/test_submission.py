"""The command and the folder that are sent to a cluster."""

import shlex
from pathlib import Path

import pytest

from cluster import submission
from jobs import cli
from pipeline.config.load import load_experiment
from tests.tiny import EXPERIMENT


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder, which is the working folder."""
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def entrypoint(*arguments: str) -> str:
    job = cli.parse(arguments)
    return shlex.join(submission.entrypoint(job, job.experiment, load_experiment(job.experiment, job.overrides)))


def test_train_uses_ray_and_writes_to_our_folder(folder: Path) -> None:
    assert entrypoint("train", "tiny.yaml") == (
        f"python -m jobs.cli train tiny.yaml --log-format json --resume auto --launcher ray output={folder}/runs"
    )


def test_given_options_are_kept(folder: Path) -> None:
    command = entrypoint("train", "tiny.yaml", "--launcher", "local", "--workers", "4", "output=s3://bucket/runs")
    assert "--launcher local --workers 4 output=s3://bucket/runs" in command
    assert str(folder) not in command


def test_relative_paths_become_absolute(folder: Path) -> None:
    assert f"--output {folder}/out" in entrypoint("predict", "tiny.yaml", "--output", "out")
    assert f"--checkpoint {folder}/c/step-1" in entrypoint("evaluate", "tiny.yaml", "--checkpoint", "c/step-1")
    assert "--checkpoint best" in entrypoint("evaluate", "tiny.yaml", "--checkpoint", "best")


def test_switches_are_kept(folder: Path) -> None:
    assert " --overwrite " in entrypoint("preprocess", "tiny.yaml", "--overwrite")


def test_overrides_are_quoted(folder: Path) -> None:
    override = "logs.path=my logs; rm -rf $HOME"
    assert override in shlex.split(entrypoint("preprocess", "tiny.yaml", override))


def test_output_folder_is_not_sent(folder: Path) -> None:
    experiment = load_experiment("tiny.yaml", ["output=results"])
    excludes = submission.runtime_env(folder, experiment)["excludes"]
    assert {".git", ".venv", "/runs", "/results"} <= set(excludes)


@pytest.mark.parametrize("text", ["Package size (200MiB) exceeds the maximum size of 100MiB", "status code 413"])
def test_folder_that_is_too_large_is_reported(text: str, folder: Path) -> None:
    assert "too large to send" in str(submission.explain_refusal(RuntimeError(text), folder))
