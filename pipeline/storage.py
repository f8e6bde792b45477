"""Files on any pyarrow or fsspec filesystem, addressed by path or URI.

Nothing here renames: an object store cannot. A file that commits something is small JSON, written last and read by
`read_json`, for which a torn file does not exist.
"""

import json
from pathlib import Path
from typing import Any

from pyarrow import fs

from pipeline.errors import UserError


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """Filesystem and path of a local path or a URI; a relative path is taken from the working directory."""
    if "://" not in uri:
        return fs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    try:
        return fs.FileSystem.from_uri(uri)
    except (ValueError, OSError, ImportError) as error:
        try:
            return _from_fsspec(uri)
        except (ValueError, ImportError) as second:
            raise UserError(f"Cannot open {uri}: {error}; fsspec says: {second}.") from error


def _from_fsspec(uri: str) -> tuple[fs.FileSystem, str]:
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(uri)
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path


def join(uri: str, *parts: str) -> str:
    """The URI of something below a folder."""
    return "/".join([uri.rstrip("/"), *parts])


def absolute(uri: str) -> str:
    """A URI that means the same in every working directory."""
    return uri if "://" in uri else resolve(uri)[1]


def exists(uri: str) -> bool:
    filesystem, path = resolve(uri)
    return filesystem.get_file_info(path).type != fs.FileType.NotFound


def is_folder(uri: str) -> bool:
    filesystem, path = resolve(uri)
    return filesystem.get_file_info(path).type == fs.FileType.Directory


def list_folder(uri: str) -> list[str]:
    """Names directly below a folder, sorted; empty where there is no folder."""
    filesystem, path = resolve(uri)
    selector = fs.FileSelector(path, recursive=False, allow_not_found=True)
    return sorted(info.base_name for info in filesystem.get_file_info(selector))


def create_folder(uri: str) -> None:
    filesystem, path = resolve(uri)
    filesystem.create_dir(path, recursive=True)


def delete_folder(uri: str) -> None:
    """Deletes a folder with all that is in it; one that is not there is no mistake."""
    filesystem, path = resolve(uri)
    if filesystem.get_file_info(path).type == fs.FileType.Directory:
        filesystem.delete_dir(path)


def delete_file(uri: str) -> None:
    filesystem, path = resolve(uri)
    if filesystem.get_file_info(path).type == fs.FileType.File:
        filesystem.delete_file(path)


def read_text(uri: str) -> str:
    filesystem, path = resolve(uri)
    with filesystem.open_input_stream(path) as stream:
        return stream.read().decode()


def write_text(uri: str, text: str) -> None:
    """Writes a whole file, making the folder that it lies in."""
    filesystem, path = resolve(uri)
    filesystem.create_dir(path.rsplit("/", 1)[0], recursive=True)
    with filesystem.open_output_stream(path) as stream:
        stream.write(text.encode())


def write_json(uri: str, value: Any) -> None:
    write_text(uri, json.dumps(value, indent=1))


def read_json(uri: str) -> Any | None:
    """The JSON in a file; None where there is no file, or one that was never written to its end."""
    try:
        return json.loads(read_text(uri))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
