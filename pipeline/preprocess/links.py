"""Files of the log that links make known under several paths: each is read once."""

import os

from pipeline import storage
from pipeline.preprocess.listing import is_on_local_disk


def repeated_files(log: str, listed: list[list[str]]) -> list[str]:
    """The paths that lead to the same real file as an earlier path.

    Args:
        log: the log folder.
        listed: the files of each partition, relative to the log folder, without links into the log.
    """
    if not is_on_local_disk(log):
        return []
    root = storage.resolve(log)[1]
    repeated, seen = [], set()
    for path in (path for paths in listed for path in paths):
        real = os.path.realpath(f"{root}/{path}")
        if real in seen:
            repeated.append(path)
        seen.add(real)
    return repeated
