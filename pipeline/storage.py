"""Files on any pyarrow or fsspec filesystem, addressed by path or URI.

A file written here is there whole or not at all. On a local disk it is written beside its place and renamed; an object
store shows an object when its upload is complete, and has no rename, so nothing else relies on one. What commits
something is small JSON, written last and read by `read_json`, for which a torn file does not exist.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pyarrow import fs

from pipeline.errors import UserError

Result = TypeVar("Result")

_S3_ATTEMPTS = 6  # with the growing waits between them, half a minute at most
_S3_CONNECT_S = 5.0
_S3_SILENCE_S = 10.0  # a connection on which nothing moves for so long is given up
_READS = 3
_UNFINISHED = ".unfinished"  # ends the name of a local file that is being written

_s3: dict[str, fs.S3FileSystem] = {}  # by their options; each has connections of its own, which stay open


class StoreError(UserError, OSError):
    """An object store did not do what was asked, whatever was tried."""


@contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """Tells an error of an object store as one that a person can mend.

    Raises:
        StoreError: the store does not answer, or refuses.
    """
    try:
        yield
    except OSError as error:
        if "AWS Error" not in str(error):
            raise
        raise StoreError(
            f"The object store did not serve {uri}: {str(error).strip().rstrip('.')}. "
            "Check its address, the credentials and whether it answers, and run again."
        ) from error


def read_again(uri: str, read: Callable[[], Result]) -> Result:
    """Gives what a read gives, and reads anew where an object store fails half-way.

    pyarrow's own attempts do not cover an answer that is cut off after a part of it went into the reader's memory.

    Raises:
        StoreError: the store does not answer, or refuses.
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
    """Filesystem and path of a local path or a URI; a relative path is taken from the working directory."""
    if "://" not in uri:
        return fs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (ValueError, OSError, ImportError) as error:
        try:
            return _from_fsspec(uri)
        except (ValueError, ImportError) as second:
            raise UserError(f"Cannot open {uri}: {error}; fsspec says: {second}.") from error
    return (_patient(filesystem) if isinstance(filesystem, fs.S3FileSystem) else filesystem), path


def _patient(filesystem: fs.S3FileSystem) -> fs.S3FileSystem:
    """The same store, with more attempts than pyarrow's three: a URI cannot say so.

    The options are those that pyarrow pickles. Only `from_uri` knows AWS_ENDPOINT_URL.
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

    filesystem, path = fsspec.core.url_to_fs(uri)
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path


def join(uri: str, *parts: str) -> str:
    """The URI of something below a folder; options that a URI ends with (`?region=...`) stay at its end."""
    path, options = _without_options(uri)
    return "/".join([path.rstrip("/"), *parts]) + options


def parent(uri: str) -> str:
    """The URI of the folder that something lies in."""
    path, options = _without_options(uri)
    return path.rstrip("/").rpartition("/")[0] + options


def _without_options(uri: str) -> tuple[str, str]:
    """A URI without the options that it ends with, and those with their `?`."""
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


def list_folder(uri: str) -> list[str]:
    """Names directly below a folder, sorted; empty where there is no folder."""
    filesystem, path = resolve(uri)
    selector = fs.FileSelector(path, recursive=False, allow_not_found=True)
    with store_errors(uri):
        names = [info.base_name for info in filesystem.get_file_info(selector)]
    return sorted(name for name in names if not name.endswith(_UNFINISHED))


def create_folder(uri: str) -> None:
    """Makes a folder and those above it. On S3 there are none: a folder is there when something is in it."""
    filesystem, path = resolve(uri)
    if not isinstance(filesystem, fs.S3FileSystem):
        filesystem.create_dir(path, recursive=True)


def prepare_file(uri: str) -> tuple[fs.FileSystem, str]:
    """Filesystem and path of a file that is to be written, its folder made."""
    create_folder(parent(uri))
    return resolve(uri)


def delete_folder(uri: str) -> None:
    """Deletes a folder with all that is in it; one that is not there is no mistake. A bucket is emptied and stays."""
    if not is_folder(uri):
        return
    filesystem, path = resolve(uri)
    with store_errors(uri):
        if isinstance(filesystem, fs.S3FileSystem) and "/" not in path:
            filesystem.delete_dir_contents(path)
        else:
            filesystem.delete_dir(path)


def delete_file(uri: str) -> None:
    """Deletes a file; one that is not there is no mistake."""
    if _type(uri) != fs.FileType.File:
        return
    filesystem, path = resolve(uri)
    with store_errors(uri):
        filesystem.delete_file(path)


def read_text(uri: str) -> str:
    filesystem, path = resolve(uri)

    def read() -> str:
        with filesystem.open_input_file(path) as file:
            return file.read().decode()

    return read_again(uri, read)


def write_text(uri: str, text: str) -> None:
    """Writes a whole file, making the folder that it lies in. Who looks meanwhile sees what was there before."""
    filesystem, path = resolve(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        _write_local(Path(path), text)
        return
    create_folder(parent(uri))
    with store_errors(uri), filesystem.open_output_stream(path) as stream:
        stream.write(text.encode())


def _write_local(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}{_UNFINISHED}")
    try:
        with unfinished.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave an empty file under the new name
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(uri: str, value: Any) -> None:
    write_text(uri, json.dumps(value, indent=1))


def read_json(uri: str) -> Any | None:
    """The JSON in a file; None where there is no file, or one that was never written to its end."""
    try:
        return json.loads(read_text(uri))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
