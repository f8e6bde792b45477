"""Secrets that a process reads from files."""

import json
import os
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.secret_files import SECRET_FILES, UNREADABLE, check_secrets, read_in_worker, read_secrets


def refer_to(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setenv("API_TOKEN", "before")  # so that it is restored
    monkeypatch.setenv(UNREADABLE, "")
    monkeypatch.setenv(SECRET_FILES, json.dumps({"API_TOKEN": str(file)}))


def test_the_variable_has_the_content_of_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(" hush\n")
    refer_to(monkeypatch, file)
    read_in_worker()
    check_secrets()
    assert os.environ["API_TOKEN"] == " hush"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file or directory"), (b"", "it is empty"), (b"\n", "it is empty"), (b"\xff", "it is not text")],
)
def test_a_file_that_cannot_be_read_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, reason: str
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    refer_to(monkeypatch, file)
    with pytest.raises(UserError, match=f"The secret API_TOKEN cannot be read from {file} on .*: {reason}") as error:
        read_secrets()
    read_in_worker()
    with pytest.raises(UserError) as later:
        check_secrets()
    assert str(later.value) == str(error.value)
