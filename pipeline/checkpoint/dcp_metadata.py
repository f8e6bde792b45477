"""Reads the file `.metadata` of torch.distributed.checkpoint without running the code of its author.

The file is a pickle, and a pickle may call any function. Checkpoints come from other people, and their checksums only
show damage. Here a pickle gets nothing but the classes below, which only hold values, and the result is checked before
torch.distributed.checkpoint uses it. Tensors are loaded by torch with `weights_only=True`; other objects, which torch
would unpickle without limits, are in no checkpoint of Manygate, so their class is not in the list.
"""

import io
import pickle  # noqa: S403 - with a list of allowed classes
from pathlib import PurePosixPath
from typing import Any

import torch
from torch.distributed.checkpoint import metadata as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo

from pipeline.errors import UserError

OTHER_CHECKPOINT = "use another checkpoint with --resume PATH or --checkpoint PATH"


def _layout(name: str) -> torch.layout:
    """Does what torch's own function does, which a pickle could otherwise change."""
    return {str(layout): layout for layout in vars(torch).values() if isinstance(layout, torch.layout)}[name]


_VALUES = (
    dcp.ChunkStorageMetadata,
    dcp.Metadata,
    dcp.MetadataIndex,
    dcp.StorageMeta,
    dcp.TensorProperties,
    dcp.TensorStorageMetadata,
    dcp._MEM_FORMAT_ENCODING,
    _StorageInfo,
)
ALLOWED: dict[tuple[str, str], Any] = {
    **{(kind.__module__, kind.__qualname__): kind for kind in _VALUES},
    **{("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): _layout,
    ("pathlib", "PosixPath"): PurePosixPath,
    ("pathlib._local", "PosixPath"): PurePosixPath,  # its module in newer versions of Python
}
"""What a pickle may name, and what it gets for it."""


class _Refused(Exception):
    """The pickle names something that is not allowed."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise _Refused(f"{module}.{name}")
        return ALLOWED[module, name]


def parse_metadata(content: bytes, source: str) -> dcp.Metadata:
    """The metadata in the content of the file.

    Args:
        content: of the file.
        source: the path of the file in the checkpoint, for errors.

    Raises:
        UserError: the file contains an object of another class, or is damaged.
    """
    try:
        found = _Unpickler(io.BytesIO(content)).load()
    except _Refused as refused:
        raise UserError(
            f"{source} contains {refused}, which no checkpoint of Manygate contains and which could run foreign code: "
            f"nothing was loaded. Do not use this checkpoint unless you trust its source; {OTHER_CHECKPOINT}."
        ) from None
    except Exception as error:  # a pickle with wrong bytes raises exceptions of almost any class
        problem = str(error).partition("\n")[0] or type(error).__name__
        raise _damaged(source, problem) from None
    if not _is_complete(found):
        raise _damaged(source, "it does not describe tensors and their files")
    return found


def _damaged(source: str, problem: str) -> UserError:
    return UserError(f"{source} is damaged: {problem}; {OTHER_CHECKPOINT}.")


def _is_complete(found: Any) -> bool:
    """Whether all values have the types that torch.distributed.checkpoint expects, and all files are in one folder."""
    kinds = {"state_dict_metadata": dict, "storage_data": dict, "planner_data": dict, "storage_meta": dcp.StorageMeta}
    return (
        _has(found, dcp.Metadata, kinds)
        and all(isinstance(name, str) and _is_tensor(tensor) for name, tensor in found.state_dict_metadata.items())
        and all(_is_index(index) and _is_location(place) for index, place in found.storage_data.items())
    )


def _has(value: Any, kind: type, attributes: dict[str, type]) -> bool:
    """Whether a value is of a class and has its own attributes of these types."""
    return isinstance(value, kind) and all(isinstance(vars(value).get(name), of) for name, of in attributes.items())


def _is_tensor(tensor: Any) -> bool:
    kinds = {"properties": dcp.TensorProperties, "size": torch.Size, "chunks": list}
    return (
        _has(tensor, dcp.TensorStorageMetadata, kinds)
        and _has(tensor.properties, dcp.TensorProperties, {"dtype": torch.dtype})
        and all(
            _has(chunk, dcp.ChunkStorageMetadata, {"offsets": torch.Size, "sizes": torch.Size})
            for chunk in tensor.chunks
        )
    )


def _is_index(index: Any) -> bool:
    return _has(index, dcp.MetadataIndex, {"fqn": str, "offset": torch.Size})


def _is_location(place: Any) -> bool:
    """Whether it names a file directly in the folder. The file is only read, but it could be anywhere on the disk."""
    if not _has(place, _StorageInfo, {"relative_path": str, "offset": int, "length": int}):
        return False
    name = place.relative_path
    return name not in ("", ".", "..") and "/" not in name and "\\" not in name and not place.transform_descriptors
