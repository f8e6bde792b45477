"""What is below a folder of the log; on a local disk by a walk of our own, which ends in spite of links."""

import os
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pyarrow import fs

from pipeline import storage
from pipeline.errors import UserError, one_line


@dataclass(frozen=True)
class Entry:
    """Something below the log folder."""

    kind: Literal["file", "folder", "closed", "link", "other"]
    """closed: a folder that cannot be listed; link: is not followed; other: neither a file nor a folder."""
    size: int = 0  # bytes of a file
    reason: str = ""  # why a folder is closed


def list_below(folder: str, recursive: bool) -> dict[str, fs.FileInfo]:
    """Everything below a folder, by path relative to it.

    Raises:
        UserError: a name is not UTF-8, or a folder cannot be listed.
    """
    filesystem, root = storage.resolve(folder)
    try:
        found = filesystem.get_file_info(fs.FileSelector(root, recursive=recursive))
        return {info.path[len(root) :].lstrip("/"): info for info in found}
    except UnicodeDecodeError as error:
        raise not_utf8(folder, error.object) from None
    except OSError as error:
        raise not_listed(folder, one_line(error)) from error


def not_utf8(folder: str, name: bytes) -> UserError:
    return UserError(
        f"{storage.absolute(folder)} contains something whose name is not UTF-8: {name!r}. Rename it, or move it away."
    )


def not_listed(folder: str, reason: str) -> UserError:
    return UserError(f"The folder {storage.absolute(folder)} cannot be listed: {reason}. Check its permissions.")


def is_on_local_disk(log: str) -> bool:
    return isinstance(storage.resolve(log)[0], fs.LocalFileSystem)


def path_in_log(log: str, folder: str) -> str | None:
    """The path of a folder relative to the log folder, if it is below it."""
    (filesystem, top), (other, path) = storage.resolve(log), storage.resolve(folder)
    if isinstance(filesystem, fs.LocalFileSystem):
        top, path = os.path.realpath(top), os.path.realpath(path)
    start = f"{top.rstrip('/')}/"
    return path[len(start) :] if filesystem.type_name == other.type_name and path.startswith(start) else None


def is_hidden(folder: str, path: str) -> bool:
    """Whether a path has a hidden part below a folder that contains it, such as the `_temporary` of a running job."""
    return any(part.startswith(("_", ".")) for part in path.removeprefix(folder).lstrip("/").split("/"))


def list_entries(log: str, folder: str, apart: Collection[str] = ()) -> dict[str, Entry]:
    """Everything below a folder of the log; paths are relative to the log folder.

    On a local disk, a link out of the log is followed, but a real folder is listed only once. A link to something in
    the log, or to a folder that contains the log, is not followed, and neither is a hidden link.

    Args:
        folder: relative to the log; empty for the log itself.
        apart: folders, relative to the log, that are left out on a local disk with everything below them.
    """
    if is_on_local_disk(log):
        return _walk(os.path.realpath(storage.resolve(log)[1]), folder, apart)
    below = list_below(storage.join(log, *([folder] if folder else [])), recursive=True)
    return {f"{folder}/{path}".lstrip("/"): _entry_of(info) for path, info in below.items()}


def _entry_of(info: fs.FileInfo) -> Entry:
    if info.type == fs.FileType.File:
        return Entry("file", info.size or 0)
    return Entry("folder" if info.type == fs.FileType.Directory else "other")


def _walk(top: str, folder: str, apart: Collection[str]) -> dict[str, Entry]:
    start = f"{top}/{folder}" if folder else top
    real = os.path.realpath(start)
    if real != start and _belongs_to_log(top, real):
        return {folder: Entry("link")}
    found: dict[str, Entry] = {}
    listed, pending = {real}, [(folder, real)]
    while pending:
        path, real = pending.pop()
        try:
            with os.scandir(real) as entries:
                children = sorted((child.name, child.is_symlink()) for child in entries)
        except OSError as error:
            found[path] = Entry("closed", reason=str(error.strerror))
            continue
        for name, is_link in children:
            below = f"{path}/{name}".lstrip("/")
            if below in apart:
                continue
            target = os.path.realpath(f"{real}/{name}") if is_link else f"{real}/{name}"
            entry, hidden = _local_entry(target), is_hidden(folder, below)
            leads_nowhere = is_link and (hidden or entry.kind == "other" or _belongs_to_log(top, target))
            if leads_nowhere or (entry.kind == "folder" and target in listed):
                entry = Entry("link")
            elif entry.kind == "folder":
                pending.append((below, target))
                if not hidden:  # what is found in a hidden folder may still be found outside of it
                    listed.add(target)
            found[below] = entry
    return found


def _belongs_to_log(top: str, real: str) -> bool:
    """Whether a real path is the log folder, is in it, or contains it."""
    return f"{real}/".startswith(f"{top}/") or f"{top}/".startswith(f"{real.rstrip('/')}/")


def _local_entry(path: str) -> Entry:
    try:
        status = Path(path).stat()
    except OSError:  # a link that leads to nothing, or a file that has just been deleted
        return Entry("other")
    if stat.S_ISREG(status.st_mode):
        return Entry("file", status.st_size)
    return Entry("folder" if stat.S_ISDIR(status.st_mode) else "other")
