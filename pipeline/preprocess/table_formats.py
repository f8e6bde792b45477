"""Table formats whose folder contains more files than the table has: Delta, Iceberg and Hudi are refused."""

from collections.abc import Iterable

from pipeline.errors import UserError

_MARKS = {"_delta_log": "Delta", ".hoodie": "Hudi"}


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
            raise UserError(
                f"{folder} contains {found} table ({path}). Such a table lists its current files itself, and its "
                "folder also keeps files that were replaced or deleted, whose rows would count twice. Export the "
                f"current rows as plain Parquet into folders {folders} of another folder, and set logs.path to "
                "that folder."
            )


def _format(path: str) -> str | None:
    *folders, name = path.split("/")
    for part in (*folders, name):
        if part in _MARKS:
            return f"a {_MARKS[part]}"
    return "an Iceberg" if folders[-1:] == ["metadata"] and name.endswith(".metadata.json") else None
