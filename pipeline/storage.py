"""Files on any pyarrow or fsspec filesystem, addressed by path or URI.

A file written here exists whole or not at all. On a local disk it is written under a temporary name in the same folder
and then renamed. An object store shows an object only when its upload is complete; it has no rename, so nothing else
relies on renaming. A commit is a small JSON file that is written last and read by `read_json`, which treats an
incomplete file as missing.
"""

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote, unquote

import pyarrow as pa
from pyarrow import fs

from pipeline.errors import UserError

Result = TypeVar("Result")

_S3_ATTEMPTS = 6  # half a minute at most, including the growing waits between them
_S3_CONNECT_S = 5.0
_S3_SILENCE_S = 10.0  # a connection that transfers nothing for this long is dropped
_READS = 3
_SAFE_IN_URIS = "/:@!$&'()*+,;=~"  # pyarrow refuses a URI with other characters that are not quoted
_UNFINISHED = ".unfinished"  # suffix of a local file that is being written
_FULL = {errno.ENOSPC: "no space is left on", errno.EDQUOT: "the quota is used up on"}
_FULL_BYTES = 2**20  # a disk with fewer free bytes counts as full

_s3: dict[str, fs.S3FileSystem] = {}  # by options; each has its own connections, which stay open


class StoreError(UserError, OSError):
    """An object store did not carry out a request, despite all attempts."""


class DiskFullError(UserError, OSError):
    """A file could not be written, because its disk is full."""


class OutsideError(UserError, OSError):
    """A path to delete leads out of the folder that it belongs to."""


@contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """Converts an error of an object store, or of a full disk, into a UserError.

    Raises:
        StoreError: the store does not respond, or refuses the request.
        DiskFullError: no space is left.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            full = _full_in_words(uri, error.errno)
            raise DiskFullError(
                f"{full[0].upper()}{full[1:]}. Free some space, then run the same command again."
            ) from error
        if "AWS Error" not in str(error):
            raise
        raise StoreError(
            f"The object store did not serve {uri}: {str(error).strip().rstrip('.')}. "
            "Check its address, the credentials and whether it responds, then run again."
        ) from error


def full_disk(uri: str, error: BaseException) -> str | None:
    """Names the disk whose lack of space made a write fail; None if it failed for another reason.

    Libraries may hide the system's error: a local disk with almost no free space counts as full.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return _full_in_words(uri, cause.errno)
        cause = cause.__cause__ or cause.__context__
    folder = _local_folder(uri)
    if folder is not None:
        disk = os.statvfs(folder)
        if disk.f_bavail * disk.f_frsize < _FULL_BYTES:
            return _full_in_words(uri, errno.ENOSPC)
    return None


def _full_in_words(uri: str, number: int) -> str:
    disk = _local_folder(uri)
    while disk is not None and not disk.is_mount():
        disk = disk.parent
    return f"{_FULL[number]} {'the store' if disk is None else disk}, where {uri} is"


def _local_folder(uri: str) -> Path | None:
    """The nearest existing folder of a path on a local disk; None for other filesystems."""
    filesystem, path = resolve(uri)
    if not isinstance(filesystem, fs.LocalFileSystem):
        return None
    return next(folder for folder in Path(path).resolve().parents if folder.is_dir())


def read_again(uri: str, read: Callable[[], Result]) -> Result:
    """Returns the result of a read; repeats a read that an object store cuts off.

    pyarrow's own retries do not cover a response that is cut off after a part of it has reached the reader's memory.

    Raises:
        StoreError: the store does not respond, or refuses the request.
    """
    for _ in range(_READS - 1):
        try:
            return read()
        except OSError as error:
            if "AWS Error INTERNAL_FAILURE" not in str(error):
                with store_errors(uri):
                    raise
    with store_errors(uri):
        return read()


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """Filesystem and path of a local path or a URI; a relative path starts at the working directory."""
    if "://" not in uri:
        return fs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (ValueError, OSError, ImportError) as error:
        try:
            return _from_fsspec(uri)
        except (ValueError, ImportError) as fsspec_error:
            raise UserError(f"Cannot open {uri}: {error}; fsspec reports: {fsspec_error}.") from error
    return (_with_retries(filesystem) if isinstance(filesystem, fs.S3FileSystem) else filesystem), path


def _with_retries(filesystem: fs.S3FileSystem) -> fs.S3FileSystem:
    """The same store with more attempts than pyarrow's three, which a URI cannot set.

    The options are taken from the pickled form of the filesystem, because only `from_uri` reads AWS_ENDPOINT_URL.
    """
    _, (options,) = filesystem.__reduce__()
    key = repr(options)
    if key not in _s3:
        ours = {
            "connect_timeout": _S3_CONNECT_S,
            "request_timeout": _S3_SILENCE_S,
            "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=_S3_ATTEMPTS),
            "allow_delayed_open": True,  # one request for a small file instead of three
        }
        _s3[key] = fs.S3FileSystem(**{**options, **ours})
    return _s3[key]


def _from_fsspec(uri: str) -> tuple[fs.FileSystem, str]:
    import fsspec

    path, options = _without_options(uri)
    filesystem, path = fsspec.core.url_to_fs(unquote(path) + options)  # pyarrow unquotes its URIs too
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path


def join(uri: str, *parts: str) -> str:
    """The URI of a path below a folder; options at the end of the URI (`?region=...`) stay at the end.

    Parts are names of files and folders. In a URI they are quoted: `hour=00%3A00` is not the folder `hour=00:00`.

    Raises:
        UserError: a part would change the options of a URI.
    """
    path, options = _without_options(uri)
    if "://" in uri:
        for part in parts:
            if "?" in part or "#" in part:
                raise UserError(f"{part!r} cannot be below {uri}: `?` and `#` begin the options of a URI. Rename it.")
        parts = tuple(quote(part, safe=_SAFE_IN_URIS) for part in parts)
    return "/".join([path.rstrip("/"), *parts]) + options


def parent(uri: str) -> str:
    """The URI of the folder that contains a file or folder."""
    path, options = _without_options(uri)
    return path.rstrip("/").rpartition("/")[0] + options


def name(uri: str) -> str:
    """The last part of the path of a file or folder."""
    last = _without_options(uri)[0].rstrip("/").rpartition("/")[2]
    return unquote(last) if "://" in uri else last


def has_options(uri: str) -> bool:
    """Whether a URI has options, such as `?region=...`, which only pyarrow understands."""
    return _without_options(uri)[1] != ""


def _without_options(uri: str) -> tuple[str, str]:
    """A URI without the options at its end, and the options with their `?`."""
    path, mark, options = uri.partition("?") if "://" in uri else (uri, "", "")
    return path, mark + options


def absolute(uri: str) -> str:
    """A URI that means the same in every working directory."""
    return uri if "://" in uri else resolve(uri)[1]


def exists(uri: str) -> bool:
    return _type(uri) != fs.FileType.NotFound


def is_folder(uri: str) -> bool:
    return _type(uri) == fs.FileType.Directory


def _type(uri: str) -> fs.FileType:
    filesystem, path = resolve(uri)
    with store_errors(uri):
        return filesystem.get_file_info(path).type


def modified(uri: str) -> float | None:
    """When a file was last written, in seconds; None if it does not exist, or if the store does not know the time."""
    filesystem, path = resolve(uri)
    with store_errors(uri):
        nanoseconds = filesystem.get_file_info(path).mtime_ns
    return None if nanoseconds is None else nanoseconds / 1e9


def list_folder(uri: str) -> list[str]:
    """Names directly below a folder, sorted; empty if the folder does not exist."""
    filesystem, path = resolve(uri)
    selector = fs.FileSelector(path, recursive=False, allow_not_found=True)
    with store_errors(uri):
        names = [info.base_name for info in filesystem.get_file_info(selector)]
    return sorted(name for name in names if not name.endswith(_UNFINISHED))


def create_folder(uri: str, private: bool = False) -> None:
    """Creates a folder and its parents. Does nothing on S3, where a folder exists as soon as it contains something.

    Args:
        private: only its owner may enter the folder, if it is on a local disk.
    """
    filesystem, path = resolve(uri)
    if not isinstance(filesystem, fs.S3FileSystem):
        filesystem.create_dir(path, recursive=True)
    if private and isinstance(filesystem, fs.LocalFileSystem):
        Path(path).chmod(0o700)


@contextmanager
def open_output(uri: str) -> Iterator[pa.NativeFile]:
    """A stream into a new file, whose folder is created. On a local disk readers see the file while it is written.

    Raises:
        StoreError, DiskFullError: as `store_errors` does.
    """
    filesystem, path = resolve(uri)
    with store_errors(uri):
        create_folder(parent(uri))
        with filesystem.open_output_stream(path) as stream:
            yield stream


def empty_folder(uri: str) -> None:
    """Creates an empty folder, or deletes the content of an existing folder. A bucket is emptied."""
    filesystem, path = resolve(uri)
    if not isinstance(filesystem, fs.S3FileSystem):
        filesystem.create_dir(path, recursive=True)
        # pyarrow deletes nothing below a link.
        filesystem.delete_dir_contents(os.path.realpath(path) if isinstance(filesystem, fs.LocalFileSystem) else path)
    elif is_folder(uri):
        with store_errors(uri):
            delete = filesystem.delete_dir if "/" in path else filesystem.delete_dir_contents
            delete(path)


def delete_folder(root: str, path: str) -> None:
    """Deletes a folder with its content; does nothing if it does not exist.

    Args:
        root: the folder that it belongs to.
        path: relative to it.

    Raises:
        OutsideError: the path leads out of `root`.
    """
    uri = _inside(root, path)
    if is_folder(uri):
        filesystem, resolved = resolve(uri)
        with store_errors(uri):
            filesystem.delete_dir(resolved)  # of a link, only the link


def delete_file(root: str, path: str) -> None:
    """Deletes a file; does nothing if it does not exist. Arguments and errors are those of `delete_folder`."""
    uri = _inside(root, path)
    if _type(uri) == fs.FileType.File:
        filesystem, resolved = resolve(uri)
        with store_errors(uri):
            filesystem.delete_file(resolved)


def is_relative(path: str) -> bool:
    """Whether a path is below the folder that it is relative to: not absolute, no URI, and without `.` and `..`."""
    return not {"", ".", ".."} & set(path.split("/")) and "\0" not in path


def _inside(root: str, path: str) -> str:
    """The URI of a path below a folder, for deleting it.

    Raises:
        OutsideError: the path leads out of the folder, by itself or through a link on a local disk.
    """
    uri = join(root, path)
    is_inside = is_relative(path)
    if is_inside:
        (filesystem, folder), target = resolve(root), Path(resolve(uri)[1])  # the path of a file:// URI is decoded
        if isinstance(filesystem, fs.LocalFileSystem):
            is_inside = target.name != ".." and target.parent.resolve().is_relative_to(Path(folder).resolve())
    if not is_inside:
        raise OutsideError(
            f"{uri} is outside of {root}, by its name or through a link, so it is not deleted. Look at who made "
            f"{root}; if it is yours, delete {uri} yourself and run again."
        )
    return uri


def read_text(uri: str, errors: Literal["strict", "replace"] = "strict") -> str:
    """The text of a file, encoded as UTF-8; `errors` says what happens to bytes that are not UTF-8."""
    filesystem, path = resolve(uri)

    def read() -> str:
        with filesystem.open_input_file(path) as file:
            return file.read().decode(errors=errors)

    return read_again(uri, read)


def write_text(uri: str, text: str) -> None:
    """Writes a whole file and creates its folder. Until the file is complete, readers see its previous content."""
    filesystem, path = resolve(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        with store_errors(uri):
            _write_local(Path(path), text)
        return
    with open_output(uri) as stream:
        stream.write(text.encode())


def _write_local(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}{_UNFINISHED}")
    try:
        with unfinished.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # otherwise a power cut may leave an empty file under the new name
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(uri: str, value: Any) -> None:
    write_text(uri, json.dumps(value, indent=1))


def read_json(uri: str) -> Any | None:
    """The JSON in a file; None if the file does not exist or was never completely written."""
    try:
        return json.loads(read_text(uri))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):  # the last one for endless brackets
        return None
