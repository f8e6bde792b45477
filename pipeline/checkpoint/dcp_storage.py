"""torch.distributed.checkpoint on any filesystem that `pipeline.storage` resolves, with a checksum of every file."""

import io
import os
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import pyarrow as pa
from pyarrow import fs
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemBase, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from pipeline import storage
from pipeline.checkpoint.dcp_metadata import parse_metadata
from pipeline.checkpoint.format import Written


class _ChecksummedStream(io.IOBase):
    """A stream that is being written, with size and checksum of its bytes, so that no file is read a second time."""

    def __init__(self, stream: io.IOBase) -> None:
        self._stream = stream
        self._bytes = self._crc32 = 0

    def write(self, data: bytes | memoryview) -> int:
        self._stream.write(data)
        size = memoryview(data).nbytes
        self._bytes += size
        self._crc32 = zlib.crc32(data, self._crc32)
        return size

    def tell(self) -> int:
        return self._bytes

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def written(self) -> Written:
        return Written(self._bytes, self._crc32)


class _RetriedFile(io.RawIOBase):
    """A file in an object store. A read is repeated if the store cuts off its answer."""

    def __init__(self, file: pa.NativeFile, path: str) -> None:
        self._file = file
        self._path = path

    def readinto(self, buffer: Any) -> int:
        position = self._file.tell()

        def read() -> int:
            self._file.seek(position)
            return int(self._file.readinto(buffer))

        return storage.read_again(self._path, read)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


class ArrowFileSystem(FileSystemBase):
    """A pyarrow filesystem behind the interface that torch.distributed.checkpoint expects."""

    def __init__(self, filesystem: fs.FileSystem) -> None:
        self._filesystem = filesystem

    @contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Generator[io.IOBase, None, None]:
        if "w" in mode:
            with self._filesystem.open_output_stream(str(path)) as stream:
                yield cast(io.IOBase, stream)
        else:
            with self._filesystem.open_input_file(str(path)) as file:
                yield io.BufferedReader(_RetriedFile(file, str(path)))

    def concat_path(self, path: str | os.PathLike, suffix: str) -> str:
        return f"{path}/{suffix}"

    def init_path(self, path: str | os.PathLike) -> str:
        return str(path)

    def rename(self, path: str | os.PathLike, new_path: str | os.PathLike) -> None:
        # On an object store this copies and deletes. It need not be atomic: the checkpoint's marker is the commit.
        self._filesystem.move(str(path), str(new_path))

    def mkdir(self, path: str | os.PathLike) -> None:
        if not isinstance(self._filesystem, fs.S3FileSystem):  # S3 has no folders, only names with slashes
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


class _Recording(FileSystemBase):
    """Records size and checksum of every file that is written, by the file's name."""

    def __init__(self, files: dict[str, Written]) -> None:
        self._files = files

    @contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Generator[io.IOBase, None, None]:
        with super().create_stream(path, mode) as stream:  # type: ignore[safe-super]
            checksummed = _ChecksummedStream(stream)
            yield checksummed
        self._files[_name(path)] = checksummed.written

    def rename(self, path: str | os.PathLike, new_path: str | os.PathLike) -> None:
        super().rename(path, new_path)  # type: ignore[safe-super]
        self._files[_name(new_path)] = self._files.pop(_name(path))


class _RecordingLocal(_Recording, FileSystem):
    pass


class _RecordingArrow(_Recording, ArrowFileSystem):
    def __init__(self, files: dict[str, Written], filesystem: fs.FileSystem) -> None:
        ArrowFileSystem.__init__(self, filesystem)
        self._files = files


def _name(path: str | os.PathLike) -> str:
    return str(path).rpartition("/")[2]


def writer(uri: str, files: dict[str, Written]) -> FileSystemWriter:
    """A DCP writer for a folder given by path or URI.

    Args:
        uri: of the folder.
        files: filled with the files that this process writes there, by file name.
    """
    filesystem, path = storage.resolve(uri)
    is_local = isinstance(filesystem, fs.LocalFileSystem)
    # Local files are synced to disk. An object store has the whole file once its stream is closed.
    out = FileSystemWriter(path, sync_files=is_local)
    out.fs = cast(FileSystem, _RecordingLocal(files) if is_local else _RecordingArrow(files, filesystem))
    out.path = out.fs.init_path(path)
    return out


class SafeReader(FileSystemReader):
    """A DCP reader that reads the metadata of a checkpoint without running code from it."""

    def __init__(self, uri: str) -> None:
        filesystem, path = storage.resolve(uri)
        super().__init__(path)
        self.fs, self.path = cast(FileSystem, ArrowFileSystem(filesystem)), path
        self._uri = uri

    def read_metadata(self) -> Metadata:
        """The metadata of the checkpoint.

        Raises:
            UserError: it is damaged, or contains an object of another class.
        """
        with self.fs.create_stream(self.fs.concat_path(self.path, ".metadata"), "rb") as stream:
            metadata = parse_metadata(stream.read(), storage.join(self._uri, ".metadata"))
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata
