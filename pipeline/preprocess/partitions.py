"""The partition folders of a log, and the split of each."""

import logging
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pyarrow import fs

from pipeline import storage
from pipeline.config.logs import LogsConfig
from pipeline.config.partition_values import PartitionOrder, has_value
from pipeline.errors import UserError
from pipeline.preprocess.delta import current_files
from pipeline.preprocess.discover import LogPartition, compact
from pipeline.preprocess.listing import list_below
from pipeline.preprocess.table_formats import DELTA_LOG, check_plain

logger = logging.getLogger(__name__)

_FOLDERS_AT_ONCE = 16
_MOST_LEVELS = 8  # that are looked at for the names of nested folders


@dataclass(frozen=True)
class DiscoveredPartitions:
    """Partitions of the log: the partitions in a split, in order, and the values of the partitions in no split."""

    partitions: list[LogPartition]
    ignored: list[str]
    current: frozenset[str] | None = None  # of a Delta table: its current files, relative to the log


def find_partitions(logs: LogsConfig, committed: Iterable[LogPartition] = ()) -> DiscoveredPartitions:
    """Lists partition folders and assigns each to its split. Warns of folders in no split that may be a mistake.

    Args:
        committed: partitions that are already in the feature table; they may have left the log.

    Raises:
        UserError: the folder is missing, it has no partition folders, a partition cannot be compared with the
            split bounds, a split has no partition, or the log is a table of another format.
    """
    if not storage.is_folder(logs.path):
        raise UserError(
            f"logs.path: there is no folder {storage.absolute(logs.path)}. Expected Parquet files in folders "
            f"{logs.folders_in_words} below it; correct logs.path, which is relative to the working directory."
        )
    in_table = {partition.value: partition.split for partition in committed}
    current = current_files(logs)
    values = _list_values(logs)
    if not values and not in_table:
        raise _no_folders(logs)
    order = logs.order([*values, *in_table], is_whole_log=True)
    split_of = {value: order.split_of(logs.parts_of(value)) for value in values}
    known = in_table | {value: split for value, split in split_of.items() if split is not None}

    def place(value: str) -> tuple[object, ...]:
        return order.key(logs.parts_of(value))

    if not known and not any(all(map(has_value, logs.parts_of(value))) for value in values):
        raise UserError(
            f"logs.path: no partition in {storage.absolute(logs.path)} has a value: "
            f"{compact([logs.folder_of(value) for value in values])}. To use their rows, rename the folders."
        )
    for split, (first, last) in logs.splits.items():
        if split not in known.values():
            raise UserError(
                f"logs.splits.{split}: no partition is between {first} and {last}. The log has "
                f"{'/'.join(logs.levels)} = {compact(sorted({*values, *in_table}, key=place))}: change the range."
            )
    ignored = sorted((value for value, split in split_of.items() if split is None), key=place)
    _warn_of_ignored(logs, order, list(known), ignored)
    _warn_of_texts(logs, order, values)
    _warn_of_spellings(logs, order, [value for value in values if value not in ignored])
    splits = list(logs.splits)
    partitions = [LogPartition(split, value) for value, split in split_of.items() if split is not None]
    partitions.sort(key=lambda p: (splits.index(p.split), place(p.value)))
    return DiscoveredPartitions(partitions, ignored, current)


def _check_no_table(logs: LogsConfig, entries: dict[str, fs.FileInfo]) -> None:
    """Raises UserError if the log folder, which contains these entries, is an Iceberg or a Hudi table."""
    names = [name for name in entries if name != DELTA_LOG]
    if "metadata" in entries and entries["metadata"].type == fs.FileType.Directory:
        names += [f"metadata/{name}" for name in list_below(storage.join(logs.path, "metadata"), recursive=False)]
    check_plain(storage.absolute(logs.path), names, logs.folders_in_words)


def _list_values(logs: LogsConfig) -> list[str]:
    """The partitions of the log, sorted. Warns of what is beside or instead of the inner folders."""
    found: list[tuple[str, ...]] = [()]
    for level, name in enumerate(logs.levels):
        with ThreadPoolExecutor(_FOLDERS_AT_ONCE) as pool:
            listed = list(pool.map(lambda parts: list_below(_folder(logs, parts), recursive=False), found))
        if not level:
            _check_no_table(logs, listed[0])
        inner = []
        for parts, entries in zip(found, listed, strict=True):
            below = [
                (*parts, entry.removeprefix(f"{name}="))
                for entry, info in sorted(entries.items())
                if entry.startswith(f"{name}=") and info.type == fs.FileType.Directory
            ]
            folders = {f"{name}={parts[-1]}" for parts in below}
            others = sorted(entry for entry in entries if entry not in folders and not entry.startswith(("_", ".")))
            if not level and below and others:
                logger.warning("logs.path: not in a folder %s=VALUE, so not read: %s", name, compact(others))
            if level and (others or not below):
                logger.warning(
                    "%s is not read except its folders %s=VALUE, because logs.partition is [%s]: it contains %s.",
                    _folder(logs, parts),
                    name,
                    ", ".join(logs.levels),
                    compact(others),
                )
            inner += below
        found = inner
    return [logs.value_of(parts) for parts in found]


def _folder(logs: LogsConfig, parts: tuple[str, ...]) -> str:
    """The URI of an outer folder of partitions."""
    return storage.join(logs.path, *(f"{level}={part}" for level, part in zip(logs.levels, parts, strict=False)))


def _no_folders(logs: LogsConfig) -> UserError:
    """The error for a log without partition folders; names the nested folders that it has."""
    path, names = storage.absolute(logs.path), sorted(list_below(logs.path, recursive=False))
    levels = _nested_levels(logs.path)
    if levels and levels != logs.levels:
        shown = "/".join(f"{level}=VALUE" for level in levels)
        wanted = levels[0] if len(levels) == 1 else f"[{', '.join(levels)}]"
        advice = f"Its folders are {shown}: for one partition per folder, set logs.partition to {wanted}."
    else:
        advice = "Correct logs.path or logs.partition."
    return UserError(
        f"logs.partition: {path} has no folders {logs.folders_in_words}; it contains: {compact(names)}. {advice}"
    )


def _nested_levels(folder: str) -> list[str]:
    """The names of nested folders NAME=VALUE below a folder, found in the first folder of each level."""
    levels: list[str] = []
    while len(levels) < _MOST_LEVELS:
        below = list_below(folder, recursive=False)
        named = [n for n in sorted(below) if n.find("=") > 0 and below[n].type == fs.FileType.Directory]
        if not named:
            break
        levels.append(named[0].partition("=")[0])
        folder = storage.join(folder, named[0])
    return levels


def _warn_of_ignored(logs: LogsConfig, order: PartitionOrder, taken: list[str], ignored: list[str]) -> None:
    """Warns of holes, which are partitions in no split between two that are taken, and of folders without a value."""
    keys = [order.key(logs.parts_of(value)) for value in taken]
    first, last = min(keys), max(keys)
    holes = [value for value in ignored if first < order.key(logs.parts_of(value)) < last]
    if holes:
        logger.warning(
            "in no split, although other partitions before and after are: %s. Change logs.splits if their rows are "
            "wanted.",
            compact([logs.folder_of(value) for value in holes]),
        )
    unnamed = [value for value in ignored if not all(map(has_value, logs.parts_of(value)))]
    if unnamed:
        logger.warning(
            "in no split, because the partition has no value: %s. To use their rows, rename the folders.",
            compact([logs.folder_of(value) for value in unnamed]),
        )


def _warn_of_texts(logs: LogsConfig, order: PartitionOrder, values: list[str]) -> None:
    """Warns of partitions whose split is another one than that of the numbers in their values, such as v10."""
    misplaced = [logs.folder_of(value) for value in values if order.is_misplaced(logs.parts_of(value))]
    if misplaced:
        logger.warning(
            "in a split, or in none, only because of their spelling: %s. %s.",
            compact(misplaced),
            order.describe_texts(),
        )


def _warn_of_spellings(logs: LogsConfig, order: PartitionOrder, values: list[str]) -> None:
    """Warns of folders that mean the same value: each is a partition, and none may contain the rows of another."""
    spellings = defaultdict(list)
    for value in values:
        spellings[order.key(logs.parts_of(value))[1]].append(logs.folder_of(value))
    for folders in spellings.values():
        if len(folders) > 1:
            logger.warning(
                "%s mean the same value: all are read, so rows that are in several of them count several times.",
                " and ".join(folders),
            )
