"""What lies in the log folder: partitions, the split each belongs to, files, their schemas and row groups."""

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipeline import storage
from pipeline.config.logs import Logs
from pipeline.errors import UserError

logger = logging.getLogger(__name__)

_FOOTERS_AT_ONCE = 16  # footers are small reads: latency decides, not bandwidth


@dataclass(frozen=True)
class LogFile:
    """A Parquet file of the log, known by its footer."""

    path: str  # relative to the log folder
    group_rows: list[int]  # rows of each row group
    schema: pa.Schema


@dataclass(frozen=True)
class LogPartition:
    """A partition folder that belongs to a split."""

    split: str
    value: str  # the text after `=`


@dataclass(frozen=True)
class Found:
    """Partitions of the log: those in a split, in order, and the values of those in none."""

    partitions: list[LogPartition]
    ignored: list[str]


@dataclass(frozen=True)
class PartitionFiles:
    """The files of a partition; those that cannot be read only where the experiment skips them."""

    partition: LogPartition
    files: list[LogFile]
    unreadable: list[str]


def find_partitions(logs: Logs, committed: Iterable[LogPartition] = ()) -> Found:
    """Lists partition folders and gives each to its split.

    Args:
        committed: partitions that the feature table has already; they may have left the log.

    Raises:
        UserError: the folder is missing, it has no partition folders, one of them cannot be compared with the
            split bounds, or a split has none.
    """
    if not storage.is_folder(logs.path):
        raise UserError(
            f"logs.path: there is no folder {storage.absolute(logs.path)}. Expected Parquet files in folders "
            f"{logs.partition}=VALUE below it; correct logs.path, which is taken from the working directory."
        )
    names = storage.list_folder(logs.path)
    prefix = f"{logs.partition}="
    values = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    if not values and not committed:
        raise UserError(
            f"logs.partition: {storage.absolute(logs.path)} has no folders {prefix}VALUE; it has: {compact(names)}. "
            "Correct logs.path or logs.partition."
        )
    split_of = {value: logs.split_of(value) for value in values}
    known = {p.value: p.split for p in committed} | {v: s for v, s in split_of.items() if s is not None}
    for split, (first, last) in logs.splits.items():
        if split not in known.values():
            raise UserError(
                f"logs.splits.{split}: no partition lies between {first} and {last}. "
                f"The log has {logs.partition} = {compact(sorted(values, key=logs.order))}: change the range."
            )
    partitions = [LogPartition(split, value) for value, split in split_of.items() if split is not None]
    splits = list(logs.splits)
    return Found(
        sorted(partitions, key=lambda p: (splits.index(p.split), logs.order(p.value))),
        sorted((value for value, split in split_of.items() if split is None), key=logs.order),
    )


def compact(values: list[str]) -> str:
    """A list for a message: whole when short, else its ends and its length."""
    if len(values) <= 8:
        return ", ".join(values) or "nothing"
    return f"{', '.join(values[:3])}, ..., {values[-1]} ({len(values)} in all)"


def read_files(logs: Logs, partitions: list[LogPartition]) -> list[PartitionFiles]:
    """Reads the footers of all files of some partitions.

    A partition folder without Parquet files is left out with a warning: its data may still come.

    Raises:
        UserError: a file cannot be read (unless `unreadable_files: skip`), or there are no files at all.
    """
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        listed = list(pool.map(lambda partition: _list_files(logs, partition), partitions))
        footers = [[pool.submit(_read_footer, logs.path, path) for path in paths] for paths in listed]
    found = []
    for partition, paths, futures in zip(partitions, listed, footers, strict=True):
        results = [future.result() for future in futures]
        unreadable = {p: r for p, r in zip(paths, results, strict=True) if isinstance(r, str)}
        for path, error in unreadable.items():
            report_unreadable(logs, path, error)
        files = [result for result in results if isinstance(result, LogFile)]
        if paths:
            found.append(PartitionFiles(partition, files, list(unreadable)))
        else:
            logger.warning("%s=%s has no Parquet files yet: left out.", logs.partition, partition.value)
    if partitions and not any(p.files for p in found):
        raise UserError(
            f"logs.path: no readable Parquet file (*.parquet) lies in the {len(partitions)} partition folders below "
            f"{storage.absolute(logs.path)} that are to be read. Correct logs.path."
        )
    return found


def report_unreadable(logs: Logs, path: str, error: str) -> None:
    """Warns of a file that is skipped.

    Raises:
        UserError: the experiment wants to fail instead.
    """
    if logs.unreadable_files == "skip":
        logger.warning("Skipped the file %s, which cannot be read: %s", path, error)
        return
    raise UserError(
        f"The log file {storage.join(storage.absolute(logs.path), path)} cannot be read: {error}. "
        "Write it again, or set logs.unreadable_files=skip to go on without it."
    )


def _list_files(logs: Logs, partition: LogPartition) -> list[str]:
    """Parquet files below a partition folder, sorted, relative to the log folder; hidden ones are not data."""
    filesystem, root = storage.resolve(logs.path)
    selector = fs.FileSelector(f"{root}/{logs.partition}={partition.value}", recursive=True)
    files = [info for info in filesystem.get_file_info(selector) if info.type == fs.FileType.File]
    return sorted(
        info.path[len(root) :].lstrip("/")
        for info in files
        if info.base_name.endswith(".parquet") and not info.base_name.startswith(("_", "."))
    )


def _read_footer(log: str, path: str) -> LogFile | str:
    """The file, or why it cannot be read."""
    filesystem, root = storage.resolve(log)
    try:
        with pq.ParquetFile(f"{root}/{path}", filesystem=filesystem) as file:
            metadata = file.metadata
            rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            return LogFile(path, rows, file.schema_arrow)
    except (pa.ArrowException, OSError) as error:
        return one_line(error)


def one_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
