"""How many entries of the log folder are in each class: what was read, and why the others were not."""

from dataclasses import dataclass
from typing import Literal

from pipeline.documents import KNOWN_KEYS_ONLY
from pipeline.sizes import in_bytes

EntryClass = Literal[
    "read", "unreadable", "late", "in_no_split", "hidden", "not_parquet", "not_current", "link", "beside"
]

_IN_WORDS: dict[EntryClass, str] = {
    "read": "read",
    "unreadable": "skipped, because they cannot be read",
    "late": "not read, because they came after their partition was read",
    "in_no_split": "in no split",
    "hidden": "hidden, because a name begins with _ or .",
    "not_parquet": "not Parquet",
    "not_current": "not read, because the Delta table has replaced or deleted them",
    "link": "links that are not followed",
    "beside": "beside the partition folders",
}


@dataclass(frozen=True)
class EntryCount:
    """The entries of a class: files, links, and folders that contain nothing."""

    __pydantic_config__ = KNOWN_KEYS_ONLY

    entries: int
    bytes: int


def describe_entries(counts: dict[EntryClass, EntryCount]) -> list[str]:
    """One line per class that has entries; nothing for a table of an earlier version."""
    lines = [
        f"  {words}: {counts[name].entries:,} files, {in_bytes(counts[name].bytes)}"
        for name, words in _IN_WORDS.items()
        if name in counts
    ]
    return ["Files below logs.path, with links and empty folders", *lines] if lines else []
