"""Links in a log on a local disk: every real file is read once, and no link leads upwards."""

import os
from pathlib import Path

from pyarrow import fs

from pipeline import storage


def surplus_links(log: str, listed: list[dict[str, int]]) -> list[str]:
    """The paths to leave out, because a link makes them another path to a file that is read anyway.

    A link out of the log is followed, such as a partition on another disk, and each of its files is read once, under
    the first path. A link to something in the log, or to a folder that contains the log, is left out.

    Args:
        log: the log folder.
        listed: the files of each partition, relative to the log folder.
    """
    filesystem, root = storage.resolve(log)
    if not isinstance(filesystem, fs.LocalFileSystem):
        return []
    top = os.path.realpath(root)
    leads_up: dict[Path, bool] = {}
    surplus, seen = [], set()
    for path in (path for paths in listed for path in paths):
        real = os.path.realpath(f"{root}/{path}")
        is_link = real != f"{top}/{path}"
        if is_link and (real.startswith(f"{top}/") or real in seen or _leads_up(Path(path).parent, top, leads_up)):
            surplus.append(path)
        seen.add(real)
    return surplus


def _leads_up(folder: Path, top: str, known: dict[Path, bool]) -> bool:
    """Whether a folder, or a folder above it below the log, is a link to the log or to a folder that contains it."""
    if folder == Path():
        return False
    if folder not in known:
        real = os.path.realpath(f"{top}/{folder}")
        known[folder] = f"{top}/".startswith(f"{real.rstrip('/')}/") or _leads_up(folder.parent, top, known)
    return known[folder]
