"""Files of the log that links make known under several paths: each is read once."""

import os
from collections.abc import Collection

from pipeline import storage
from pipeline.preprocess.listing import is_on_local_disk


def repeated_files(log: str, listed: list[list[str]], read_before: Collection[str] = ()) -> list[str]:
    """The paths that lead to the same real file as an earlier path.

    Args:
        log: the log folder.
        listed: the files of each partition, relative to the log folder, without links into the log.
        read_before: files that the feature table already contains, which come before all others.
    """
    if not is_on_local_disk(log):
        return []
    top = os.path.realpath(storage.resolve(log)[1])
    real_paths = {path: os.path.realpath(f"{top}/{path}") for paths in listed for path in paths}
    has_links = any(real != f"{top}/{path}" for path, real in real_paths.items())
    seen = {os.path.realpath(f"{top}/{path}") for path in read_before} if has_links else set()
    repeated = []
    for path, real in real_paths.items():
        if real in seen and path not in read_before:
            repeated.append(path)
        seen.add(real)
    return repeated
