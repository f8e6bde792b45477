"""The command and the folder that are sent to a cluster."""

import importlib
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from cluster import submission
from cluster.package import make_package
from jobs import cli
from pipeline.config.load import load_experiment
from pipeline.errors import UserError
from tests.tiny import EXPERIMENT


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder, which is the working folder."""
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/cli.py").touch()
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


def prepared(folder: Path, *arguments: str, include: tuple[str, ...] = ()) -> submission.Submission:
    job = cli.parse(arguments)
    return submission.prepare(job, load_experiment(job.experiment, job.overrides), folder, include, {}, {})


def test_output_folders_are_not_sent(folder: Path) -> None:
    for name in ("runs/a", "results/b", "tables/c"):
        (folder / name).parent.mkdir()
        (folder / name).touch()
    sent = prepared(folder, "train", "tiny.yaml", "output=results", "table.path=tables")
    assert list(sent.package.files) == ["jobs/cli.py", "tiny.yaml"]


def test_a_folder_that_is_no_project_is_refused(folder: Path) -> None:
    (folder / "jobs/cli.py").unlink()
    with pytest.raises(UserError, match=r"is not the project's folder: there is no jobs/cli\.py"):
        prepared(folder, "train", "tiny.yaml")


def test_an_experiment_file_that_git_ignores_is_reported(folder: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], check=True)
    (folder / ".gitignore").write_text("tiny.yaml")
    with pytest.raises(UserError, match="add --include tiny.yaml to send it"):
        prepared(folder, "train", "tiny.yaml")
    assert "tiny.yaml" in prepared(folder, "train", "tiny.yaml", include=("tiny.yaml",)).package.files


@pytest.mark.parametrize("command", submission.READ_LOGS)
def test_logs_that_git_ignores_are_reported(folder: Path, command: str) -> None:
    subprocess.run(["git", "init", "--quiet"], check=True)
    (folder / ".gitignore").write_text("log\n*.side\n")
    for name in ("log/date=1/a.parquet", "log/_SUCCESS", "users.side"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    with pytest.raises(UserError, match="logs.path: 1 of 1 files of log are not sent.*Add --include log to send"):
        prepared(folder, command, "tiny.yaml")
    sent = prepared(folder, command, "tiny.yaml", include=("log",))
    assert "log/date=1/a.parquet" in sent.package.files
    joined = (command, "tiny.yaml", "logs.joins=[{path: users.side, key: user_id}]")
    with pytest.raises(UserError, match=r"logs.joins.0.path: 1 of 1 files of users.side"):
        prepared(folder, *joined, include=("log",))
    prepared(folder, *joined, include=("log", "users.side"))
    with pytest.raises(UserError, match=r"logs.path: \.\./log .*outside.*absolute path|does not exist"):
        prepared(folder, command, "tiny.yaml", "logs.path=../log")
    prepared(folder, command, "tiny.yaml", "logs.path=s3://bucket/log")
    prepared(folder, command, "tiny.yaml", "logs.path=/data/log")


def test_ids_say_what_they_are_and_differ() -> None:
    found = {submission.new_id("exp", "train") for _ in range(200)}
    assert len(found) == 200
    assert all(re.fullmatch(r"exp-train-\d{8}-\d{6}-[0-9a-f]{8}", name) for name in found)
    assert submission.new_id("a/b c?d", "train").startswith("a-b-c-d-train-")


def test_only_the_paths_of_secrets_are_sent(folder: Path) -> None:
    environment = submission.runtime_env(folder / "p.zip", {"A": "1"}, {"TOKEN": "/run/secrets/token"})
    assert environment["env_vars"]["A"] == "1"
    assert json.loads(environment["env_vars"]["MANYGATE_SECRET_FILES"]) == {"TOKEN": "/run/secrets/token"}
    module, _, function = environment["worker_process_setup_hook"].rpartition(".")
    assert callable(getattr(importlib.import_module(module), function))
    assert "worker_process_setup_hook" not in submission.runtime_env(folder / "p.zip", {}, {})


@pytest.mark.parametrize("text", ["Package size (200MiB) exceeds the maximum size of 100MiB", "status code 413"])
def test_folder_that_is_too_large_is_reported(text: str, folder: Path) -> None:
    (folder / "jobs/large.bin").write_bytes(bytes(5000))
    message = str(submission.explain_refusal(RuntimeError(text), make_package(folder)))
    assert "too large to send" in message and "jobs/large.bin (4.9 KiB)" in message
