"""The metadata of a checkpoint, a pickle, is read without running code from it."""

import ast
import functools
import io
import os
import pickle
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint import metadata as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo

from pipeline.checkpoint.dcp_metadata import ALLOWED, parse_metadata
from pipeline.errors import UserError
from tests.old_runs.copies import FIRST
from tests.pickles import CALLS, Call, touches


def old_metadata() -> list[bytes]:
    with tarfile.open(FIRST / "checkpoints.tar.xz") as packed:
        files = [packed.extractfile(member) for member in packed if member.name.endswith("/.metadata")]
        return [file.read() for file in files if file is not None]


OLD = old_metadata()


def parts(value: Any) -> Any:
    """Metadata without the path that it was saved in, whose class differs."""
    value.storage_meta.checkpoint_id = str(value.storage_meta.checkpoint_id)
    return value


def test_checkpoints_of_earlier_versions_are_read_as_torch_reads_them() -> None:
    assert len(OLD) == 2
    for content in OLD:
        found = parse_metadata(content, "x/.metadata")
        assert parts(found) == parts(pickle.loads(content)) and len(found.state_dict_metadata) > 100  # noqa: S301


def metadata(**changes: Any) -> dcp.Metadata:
    """Metadata of one tensor in one file."""
    size = torch.Size([4, 2])
    tensor = dcp.TensorStorageMetadata(
        dcp.TensorProperties(torch.bfloat16, torch.sparse_coo, memory_format=torch.channels_last),
        size,
        [dcp.ChunkStorageMetadata(torch.Size([0, 0]), size)],
    )
    values: dict[str, Any] = {
        "state_dict_metadata": {"x": tensor},
        "planner_data": {"x": ("x",)},
        "storage_data": {dcp.MetadataIndex("x", [0, 0], 0): _StorageInfo("__0_0.distcp", 0, 9)},
        "storage_meta": dcp.StorageMeta("s3://bucket/run"),
    }
    return dcp.Metadata(**{**values, **changes})


def test_every_type_layout_and_memory_format_is_read() -> None:
    assert parse_metadata(pickle.dumps(metadata()), "x") == metadata()


def test_only_classes_that_hold_values_are_allowed() -> None:
    """Any addition to the list needs a reason: none of these does anything but keep what it is given."""
    names = {f"{module}.{name}" for (module, name), value in ALLOWED.items() if not isinstance(value, torch.dtype)}
    of_dcp = {
        *("ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties"),
        *("TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
    }
    assert names == {
        *(f"torch.distributed.checkpoint.metadata.{name}" for name in of_dcp),
        *("torch.distributed.checkpoint.filesystem._StorageInfo", "torch.Size", "torch.serialization._get_layout"),
        *("pathlib.PosixPath", "pathlib._local.PosixPath"),
    }


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "marker"


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__.strip("_"))
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_function_is_called(marker: Path, call: Callable[[Path], Any], protocol: int) -> None:
    """As the whole content, as a value, inside of a value, and as the state of an object that is allowed."""
    planted = call(marker)
    for content in (
        planted,
        [planted],
        metadata(planner_data={"x": planted}),
        metadata(storage_meta=dcp.StorageMeta(modules=[planted])),
    ):
        with pytest.raises(UserError, match=r"^x/.metadata contains \S+, which no checkpoint .* nothing was loaded"):
            parse_metadata(pickle.dumps(content, protocol), "x/.metadata")
    assert not marker.exists()


def test_the_calls_of_this_test_do_something(marker: Path) -> None:
    """Python's own reader runs each of them."""
    for call in CALLS:
        pickle.loads(pickle.dumps(call(marker)))  # noqa: S301
        touches(marker)


FUNCTIONS = [os.system, eval, exec, subprocess.Popen, functools.partial, getattr, __import__, io.open, torch.load]


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_nested_calls_are_refused(data: st.DataObject) -> None:
    """Functions whose arguments are the results of functions, in any structure."""
    leaf = st.one_of(st.integers(), st.text(), st.sampled_from(FUNCTIONS), st.just(torch.Size([2])))

    def wider(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        call = st.builds(Call, st.sampled_from(FUNCTIONS), st.tuples(inner))
        return st.one_of(st.lists(inner, max_size=3), st.tuples(inner, inner), call)

    inside = data.draw(st.recursive(leaf, wider, max_leaves=8))
    planted = Call(data.draw(st.sampled_from(FUNCTIONS)), (inside,))
    with pytest.raises(UserError, match=r"contains \S+, which no checkpoint"):
        parse_metadata(pickle.dumps(metadata(planner_data={"x": planted})), "x")


@given(st.binary(max_size=200), st.integers(0, 10_000), st.integers(0, 10_000))
@settings(max_examples=300, deadline=None)
def test_wrong_bytes_are_damage(inserted: bytes, start: int, length: int) -> None:
    """Bytes of a real file are replaced, removed or added: it is read, or refused in one sentence."""
    at = start % len(OLD[0])
    for content in (inserted, OLD[0][:at], OLD[0][:at] + inserted + OLD[0][at + length :]):
        try:
            parse_metadata(content, "x/.metadata")
        except UserError as error:
            assert str(error).startswith("x/.metadata ") and "\n" not in str(error)


WRONG: list[Any] = [
    None,
    7,
    {},
    dcp.StorageMeta(),
    metadata(state_dict_metadata=None),
    metadata(state_dict_metadata={"x": 1}),
    metadata(state_dict_metadata={1: metadata().state_dict_metadata["x"]}),
    metadata(state_dict_metadata={"x": dcp.TensorStorageMetadata(7, torch.Size([4]), [])}),  # type: ignore[arg-type]
    metadata(storage_data=None),
    metadata(storage_data={"x": 1}),
    metadata(storage_data={dcp.MetadataIndex("x", [0]): 1}),
    *(
        metadata(storage_data={dcp.MetadataIndex("x", [0]): _StorageInfo(path, 0, 1)})
        for path in ("../x", "/etc/passwd", "..", "", "a/b", 7)
    ),
    metadata(storage_data={dcp.MetadataIndex("x", [0]): _StorageInfo("x", 0, 1, ["zstd"])}),
]


@pytest.mark.parametrize("wrong", WRONG, ids=range(len(WRONG)))
def test_another_object_is_damage(wrong: Any) -> None:
    with pytest.raises(UserError, match=r"^x/.metadata is damaged: it does not describe tensors and their files; use"):
        parse_metadata(pickle.dumps(wrong), "x/.metadata")


def test_nothing_else_reads_pickles() -> None:
    """Nor any other format that may hold code."""
    root, found = Path(__file__).resolve().parents[2], set()
    unsafe = r"\b(pickle|cloudpickle|dill|shelve|marshal|joblib|read_pickle|allow_pickle|np\.load|torch\.load)\b"
    for folder in ("pipeline", "models", "jobs", "cluster"):
        for file in (root / folder).rglob("*.py"):
            code = ast.unparse(without_docstrings(ast.parse(file.read_text())))
            if re.search(unsafe, code) or re.search(r"yaml\.(unsafe_|full_)?load\((?!.*ExperimentLoader)", code):
                found.add(str(file.relative_to(root)))
    assert found == {"pipeline/checkpoint/dcp_metadata.py"}


def without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = ""
    return tree


def test_objects_that_are_no_tensors_are_refused() -> None:
    """Torch would read their files with a pickle without limits."""
    with pytest.raises(UserError, match="contains torch.distributed.checkpoint.metadata.BytesStorageMetadata"):
        parse_metadata(pickle.dumps(metadata(state_dict_metadata={"x": dcp.BytesStorageMetadata()})), "x")
