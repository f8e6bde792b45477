"""Jobs that are refused, or only printed, before anything is sent to a cluster."""

from pathlib import Path

import pytest

from tests.commands import manygate
from tests.tiny import EXPERIMENT

NOWHERE = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder, which is the working folder."""
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/cli.py").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def submit(*arguments: str) -> str:
    """The message of a refusal."""
    return manygate("submit", *arguments, "--address", NOWHERE, check=2).err


def test_experiment_outside_the_folder_is_refused() -> None:
    assert "outside" in submit("train", "../other.yaml")


def test_invalid_experiment_is_refused_before_the_cluster_is_contacted() -> None:
    assert "did you mean 'epochs'" in submit("train", "tiny.yaml", "training.epoch=2")


def test_cluster_that_does_not_respond_is_reported() -> None:
    assert f"Nothing answers at {NOWHERE}" in submit("train", "tiny.yaml")


def test_dry_run_prints_what_would_be_sent_and_needs_no_cluster(folder: Path) -> None:
    (folder / ".env").write_text("TOKEN=hush")
    flags = ("--env", "LEVEL=debug", "--secret", "API_TOKEN=/run/secrets/api")
    printed = manygate("submit", "train", "tiny.yaml", "--workers", "2", "--dry-run", *flags, check=0).out
    for expected in (
        *("jobs/cli.py", f"{len(EXPERIMENT)} B  tiny.yaml", "in 2 files", "left out as private: .env"),
        *("command: python -m jobs.cli train tiny.yaml ", "--launcher ray --workers 2", "id: tiny-train-"),
        *("environment: LEVEL", "API_TOKEN from /run/secrets/api"),
    ):
        assert expected in printed, expected
    assert "hush" not in printed and "debug" not in printed
    assert ".env\n" in manygate("submit", "train", "tiny.yaml", "--dry-run", "--include", ".env", check=0).out


@pytest.mark.parametrize(
    "text",
    [
        *(
            "AWS_SECRET_ACCESS_KEY=x",
            "AWS_ACCESS_KEY_ID=x",
            "HF_TOKEN=x",
            "DB_PASSWORD=x",
            "GITHUBTOKEN=x",
            "MY_API_KEY=x",
        ),
        *("DATABASE_URL=postgres://me:hush@host/db", "CERT=-----BEGIN PRIVATE KEY-----"),
    ],
)
def test_a_plain_variable_that_looks_like_a_secret_is_refused(text: str) -> None:
    name, _, value = text.partition("=")
    message = submit("train", "tiny.yaml", "--env", text)
    assert f"use --secret {name}=FILE" in message and value not in message.replace(name, "").split()
    assert "Nothing answers" in submit("train", "tiny.yaml", "--secret", f"{name}=/run/secrets/x")


@pytest.mark.parametrize(
    "text", ["LEVEL=debug", "TOKENIZERS_PARALLELISM=false", "AWS_SHARED_CREDENTIALS_FILE=/a", "MONKEY=1", "A="]
)
def test_a_plain_variable_is_accepted(text: str) -> None:
    assert "Nothing answers" in submit("train", "tiny.yaml", "--env", text)


@pytest.mark.parametrize(
    ("flag", "text", "expected"),
    [
        ("--env", "A", "expected --env NAME=VALUE"),
        ("--env", "1A=b", "expected --env NAME=VALUE"),
        ("--secret", "A", "expected --secret NAME=FILE"),
        ("--secret", "A=relative", "expected the absolute path of a file on the cluster's machines"),
        ("--secret", "MANYGATE_SECRET_FILES=/a", "expected --secret NAME=FILE"),
    ],
)
def test_a_variable_in_another_form_is_refused(flag: str, text: str, expected: str) -> None:
    assert expected in submit("train", "tiny.yaml", flag, text)
