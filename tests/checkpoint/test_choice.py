"""Values of `--resume` and `--checkpoint`."""

from pathlib import Path

import pytest

from pipeline.checkpoint.choice import AUTO, BEST, LATEST, NEVER, CheckpointChoice


def test_a_choice_is_a_word_or_a_path_that_workers_in_other_folders_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [CheckpointChoice.parse(word) for word in ("auto", "never", "latest", "best")]
    assert words == [AUTO, NEVER, LATEST, BEST]
    assert [str(word) for word in words] == ["auto", "never", "latest", "best"]
    relative, remote = CheckpointChoice.parse("c/step-1"), CheckpointChoice.parse("s3://bucket/c/step-1")
    assert (str(relative), str(remote)) == (f"{tmp_path}/c/step-1", "s3://bucket/c/step-1")
    assert relative == CheckpointChoice.parse(str(relative)), "unchanged by sending a job to a cluster"
