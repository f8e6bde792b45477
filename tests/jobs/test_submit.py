"""Jobs that are refused before anything is sent to a cluster."""

from pathlib import Path

import pytest

from jobs import cli, submit
from pipeline.errors import UserError
from tests.tiny import EXPERIMENT


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project folder, which is the working folder."""
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)


def test_experiment_outside_the_folder_is_refused() -> None:
    with pytest.raises(UserError, match="outside"):
        submit.run(cli.parse(["train", "../other.yaml"]), "http://127.0.0.1:1", follow_log=False)


def test_invalid_experiment_is_refused_before_the_cluster_is_contacted() -> None:
    with pytest.raises(UserError, match="did you mean 'epochs'"):
        submit.run(cli.parse(["train", "tiny.yaml", "training.epoch=2"]), "http://127.0.0.1:1", follow_log=False)


def test_cluster_that_does_not_respond_is_reported() -> None:
    with pytest.raises(UserError, match="Nothing answers at http://127.0.0.1:1"):
        submit.run(cli.parse(["train", "tiny.yaml"]), "http://127.0.0.1:1", follow_log=False)
