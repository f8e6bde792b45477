"""Checkpoints of other people: no command runs code from them, and a broken one is refused in one sentence."""

import io
import json
import pickle
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import metadata as dcp

from tests.commands import Answer, manygate
from tests.old_runs.copies import STEPS, copy_of_run
from tests.pickles import CALLS, Call

CHECKPOINT = f"run/checkpoints/step-{STEPS[1]:08d}"


def commands(folder: Path) -> list[tuple[str, ...]]:
    return [
        ("evaluate", "experiment.yaml", "--checkpoint", CHECKPOINT),
        ("predict", "experiment.yaml", "--checkpoint", CHECKPOINT, "--output", str(folder / "predictions")),
        ("train", "experiment.yaml", "--resume", CHECKPOINT),
        ("train", "experiment.yaml"),
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy_of_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def replace(name: str, content: bytes) -> None:
    """Replaces a file of the checkpoint, as its author could: with its size and checksum in the marker."""
    Path(CHECKPOINT, name).write_bytes(content)
    marker = Path(CHECKPOINT, "complete.json")
    data = json.loads(marker.read_text())
    data["files"][name] = {"bytes": len(content), "crc32": zlib.crc32(content)}
    marker.write_text(json.dumps(data))


def assert_one_sentence(answer: Answer) -> None:
    assert "Traceback" not in answer.err and answer.err.splitlines()[-1].startswith("manygate: "), answer.err


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__.strip("_"))
def test_no_command_runs_code_from_the_metadata(folder: Path, call: Callable[[Path], Any]) -> None:
    planted = folder / "planted"
    replace("data/.metadata", pickle.dumps(call(planted)))
    for command in commands(folder):
        answer = manygate(*command, check=2)
        assert_one_sentence(answer)
        assert f"{CHECKPOINT}/data/.metadata contains " in answer.err and "could run foreign code" in answer.err
    manygate("inspect", CHECKPOINT, check=0)
    assert not planted.exists()


def test_no_command_runs_code_from_the_tensors(folder: Path) -> None:
    """A file of tensors is a zip archive with a pickle in it."""
    planted = folder / "planted"
    source = zipfile.ZipFile(io.BytesIO(archive()))
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as target:
        for name in source.namelist():
            is_pickle = name.endswith("data.pkl")
            target.writestr(name, pickle.dumps(CALLS[0](planted), 2) if is_pickle else source.read(name))
    data = Path(CHECKPOINT, "data/__0_0.distcp")
    whole = data.read_bytes()
    metadata = pickle.loads(Path(CHECKPOINT, "data/.metadata").read_bytes())  # noqa: S301 - our own
    for place in metadata.storage_data.values():
        place.offset, place.length = len(whole), len(content.getvalue())
    replace("data/__0_0.distcp", whole + content.getvalue())
    replace("data/.metadata", pickle.dumps(metadata))
    for command in commands(folder):
        answer = manygate(*command, check=2)
        assert_one_sentence(answer)
        assert "cannot be read: Weights only load failed" in answer.err
    assert not planted.exists()


def archive() -> bytes:
    out = io.BytesIO()
    torch.save(torch.zeros(2), out)
    return out.getvalue()


def test_an_object_in_place_of_a_tensor_is_not_loaded(folder: Path) -> None:
    """Torch unpickles such objects without limits."""
    planted = folder / "planted"
    metadata = pickle.loads(Path(CHECKPOINT, "data/.metadata").read_bytes())  # noqa: S301 - our own
    for name in metadata.state_dict_metadata:
        metadata.state_dict_metadata[name] = dcp.BytesStorageMetadata()
    replace("data/.metadata", pickle.dumps(metadata))
    replace("data/__0_0.distcp", pickle.dumps(CALLS[0](planted)))
    for command in commands(folder):
        assert "BytesStorageMetadata" in manygate(*command, check=2).err
    assert not planted.exists()


@pytest.mark.parametrize(
    "content", [b"", b"garbage", pickle.dumps(7), pickle.dumps(Call(torch.Size, ([1],)))], ids=range(4)
)
def test_broken_metadata_is_refused_in_one_sentence(folder: Path, content: bytes) -> None:
    replace("data/.metadata", content)
    for command in commands(folder):
        answer = manygate(*command, check=2)
        assert_one_sentence(answer)
        assert f"{CHECKPOINT}/data/.metadata is damaged: " in answer.err


def test_the_advice_helps(folder: Path) -> None:
    """Another checkpoint of the run can be used."""
    replace("data/.metadata", b"")
    earlier = f"run/checkpoints/step-{STEPS[0]:08d}"
    manygate("evaluate", "experiment.yaml", "--checkpoint", earlier, check=0)
    manygate("train", "experiment.yaml", "--resume", earlier, check=0)
    manygate("evaluate", "experiment.yaml", "--checkpoint", "latest", check=0)
