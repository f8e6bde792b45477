"""Every entry below the log folder in exactly one class. Entries are files, links, and folders that contain nothing."""

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.config.logs import LogsConfig
from pipeline.preprocess.discover import check_listed, data_files, looks_like_parquet
from pipeline.preprocess.links import repeated_files
from pipeline.preprocess.listing import Entry, is_hidden, is_on_local_disk, list_entries, path_in_log
from pipeline.preprocess.partitions import DiscoveredPartitions
from pipeline.table.entry_counts import EntryClass, EntryCount
from pipeline.table.partition_record import PartitionRecord

_FOLDERS_AT_ONCE = 16


Listed = dict[str, dict[str, Entry]]
"""The entries of each partition folder, and under an empty name the entries in none of them, by path."""


@dataclass(frozen=True)
class ClassifiedEntry:
    kind: EntryClass
    bytes: int


def count_entries(classified: dict[str, ClassifiedEntry]) -> dict[EntryClass, EntryCount]:
    """The number and the bytes of the entries of each class that has any."""
    entries, sizes = Counter[EntryClass](), Counter[EntryClass]()
    for entry in classified.values():
        entries[entry.kind] += 1
        sizes[entry.kind] += entry.bytes
    return {kind: EntryCount(number, sizes[kind]) for kind, number in sorted(entries.items())}


def classify_entries(
    logs: LogsConfig, found: DiscoveredPartitions, records: list[PartitionRecord], listed: Listed
) -> dict[str, ClassifiedEntry]:
    """The class of every entry of a listing, by path relative to the log folder.

    Args:
        found: the partitions of the log.
        records: of the partitions in the feature table, which name the files that were read.
        listed: all of the log, see `list_log`, or only some of its partitions.
    """
    in_split = [logs.folder_of(partition.value) for partition in found.partitions]
    in_no_split = [logs.folder_of(value) for value in found.ignored]
    read, skipped = set[str](), set[str]()
    unlisted = {logs.folder_of(record.partition.value) for record in records if record.log_files is None}
    for record in records:
        read.update(record.log_files or {})
        skipped.update(record.partition.skipped_files)
    known = read | skipped
    data = [list(data_files(folder, listed[folder])) for folder in in_split if folder in listed]
    links = set(repeated_files(logs.path, data, read))
    outside: dict[str, EntryClass] = {"": "beside", **dict.fromkeys(in_no_split, "in_no_split")}

    def class_of(folder: str, path: str, entry: Entry) -> EntryClass:
        is_current = found.current is None or path in found.current
        if entry.kind == "file" and is_current and path in known:
            return "unreadable" if path in skipped else "read"
        if is_hidden(folder, path):
            return "hidden"
        if entry.kind == "link" or path in links:
            return "link"
        if folder in outside:
            return outside[folder]
        if entry.kind != "file" or not looks_like_parquet(logs.path, path):
            return "not_parquet"
        if not is_current:
            return "not_current"
        return "read" if folder in unlisted else "late"

    return {
        path: ClassifiedEntry(class_of(folder, path, entry), entry.size)
        for folder, entries in listed.items()
        for path, entry in entries.items()
    }


def list_log(logs: LogsConfig, found: DiscoveredPartitions, own: Iterable[str] = ()) -> Listed:
    """The entries of the log folder. Folders are left out, except those that contain nothing.

    Args:
        found: the partitions of the log.
        own: folders of the run itself. What is in them is left out.

    Raises:
        UserError: a partition in a split cannot be listed, or contains a name that is not UTF-8.
    """
    in_split = [logs.folder_of(partition.value) for partition in found.partitions]
    in_log = [below for folder in own if (below := path_in_log(logs.path, folder)) is not None]
    listed = _list_leaves(logs.path, [*in_split, *map(logs.folder_of, found.ignored)], in_log)
    for folder in in_split:
        check_listed(logs.path, folder, listed[folder])
    return listed


def _list_leaves(log: str, partitions: list[str], own: list[str]) -> Listed:
    listed: dict[str, dict[str, Entry]] = {folder: {} for folder in ["", *partitions]}
    if is_on_local_disk(log):
        apart = frozenset([*partitions, *own])
        with ThreadPoolExecutor(_FOLDERS_AT_ONCE) as pool:
            for folder, found in zip(listed, pool.map(lambda f: list_entries(log, f, apart), listed), strict=True):
                listed[folder] = ({folder: Entry("folder")} if folder else {}) | found
    else:  # one listing of a store is much cheaper than one per folder
        for path, entry in list_entries(log, "").items():
            parts = path.split("/")
            above = ["/".join(parts[:depth]) for depth in range(len(parts), 0, -1)]
            if not {*above}.intersection(own):
                listed[next((folder for folder in above if folder in listed), "")][path] = entry
    paths = [*own, *(path for entries in listed.values() for path in entries)]
    parents = {path.rpartition("/")[0] for path in paths}
    return {
        folder: {path: entry for path, entry in entries.items() if entry.kind != "folder" or path not in parents}
        for folder, entries in listed.items()
    }
