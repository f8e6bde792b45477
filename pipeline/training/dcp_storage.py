"""torch.distributed.checkpoint on any filesystem that `pipeline.storage` resolves."""

import io
import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

from pyarrow import fs
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemBase, FileSystemReader, FileSystemWriter

from pipeline import storage


class ArrowFileSystem(FileSystemBase):
    """A pyarrow filesystem as torch.distributed.checkpoint wants one."""

    def __init__(self, filesystem: fs.FileSystem) -> None:
        self._filesystem = filesystem

    @contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Generator[io.IOBase, None, None]:
        is_write = "w" in mode
        opened = self._filesystem.open_output_stream if is_write else self._filesystem.open_input_file
        with opened(str(path)) as stream:
            yield cast(io.IOBase, stream)

    def concat_path(self, path: str | os.PathLike, suffix: str) -> str:
        return f"{path}/{suffix}"

    def init_path(self, path: str | os.PathLike) -> str:
        return str(path)

    def rename(self, path: str | os.PathLike, new_path: str | os.PathLike) -> None:
        # Copy and delete on an object store. Nothing depends on it: the checkpoint's own marker is the commit.
        self._filesystem.move(str(path), str(new_path))

    def mkdir(self, path: str | os.PathLike) -> None:
        self._filesystem.create_dir(str(path), recursive=True)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return True

    def exists(self, path: str | os.PathLike) -> bool:
        return self._filesystem.get_file_info(str(path)).type != fs.FileType.NotFound

    def rm_file(self, path: str | os.PathLike) -> None:
        self._filesystem.delete_file(str(path))

    def ls(self, path: str | os.PathLike) -> list[str]:
        return [info.path for info in self._filesystem.get_file_info(fs.FileSelector(str(path)))]


def writer(uri: str) -> FileSystemWriter:
    """A DCP writer for a folder given by path or URI."""
    filesystem, path = storage.resolve(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        return FileSystemWriter(path)  # syncs each file to disk
    out = FileSystemWriter(path, sync_files=False)  # an object store has a file when its stream is closed
    out.fs, out.path = cast(FileSystem, ArrowFileSystem(filesystem)), path
    return out


def reader(uri: str) -> FileSystemReader:
    """A DCP reader for a folder given by path or URI."""
    filesystem, path = storage.resolve(uri)
    out = FileSystemReader(path)
    out.fs, out.path = cast(FileSystem, ArrowFileSystem(filesystem)), path
    return out
