"""Table formats whose folder contains more files than the table has: Iceberg and Hudi are refused, Delta is read."""

from collections.abc import Iterable

from pipeline.errors import UserError

DELTA_LOG = "_delta_log"
_MARKS = {DELTA_LOG: "Delta", ".hoodie": "Hudi"}


def check_plain(folder: str, paths: Iterable[str], folders: str) -> None:
    """Raises UserError if a folder is, or contains, a table of a format with its own list of files.

    Such a folder keeps files that the table has replaced or deleted: all its files together would count rows twice.

    Args:
        folder: for the error.
        paths: of everything below the folder, relative to it.
        folders: how partition folders are named, in words, for the error.
    """
    for path in paths:
        found = _format(path)
        if found is not None:
            raise refused(folder, found, path, folders, "Such a table lists its current files itself.")


def refused(folder: str, found: str, path: str, folders: str, why: str) -> UserError:
    """The error for a table of another format.

    Args:
        folder: that contains the table.
        found: the format, with its article.
        path: by which it is known.
        folders: how partition folders are named, in words.
        why: a sentence that says why its files cannot be read.
    """
    return UserError(
        f"{folder} contains {found} table ({path}). {why} Its folder also keeps files that were replaced or deleted, "
        f"whose rows would count twice. Export the current rows as plain Parquet into folders {folders} of another "
        "folder, and set logs.path to that folder."
    )


def _format(path: str) -> str | None:
    *folders, name = path.split("/")
    for part in (*folders, name):
        if part in _MARKS:
            return f"a {_MARKS[part]}"
    return "an Iceberg" if folders[-1:] == ["metadata"] and name.endswith(".metadata.json") else None
