"""The files of partitions in the log folder, with their schemas and row groups."""

import logging
import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.config.logs import LogsConfig
from pipeline.errors import UserError, one_line
from pipeline.preprocess.links import repeated_files
from pipeline.preprocess.listing import Entry, is_hidden, list_entries, not_listed, not_utf8
from pipeline.preprocess.named_columns import INT96_UNIT, named_schema
from pipeline.preprocess.table_formats import check_plain

logger = logging.getLogger(__name__)

UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)
"""The exceptions that pyarrow raises for a damaged file; the last one for column names that are not UTF-8."""

_MAGIC = (b"PAR1", b"PARE")  # the first and last bytes of a Parquet file; PARE if its footer is encrypted

_FOOTERS_AT_ONCE = 16  # footers are small, so reading them is limited by latency, not by bandwidth


@dataclass(frozen=True)
class LogFile:
    """A Parquet file of the log, described by its footer."""

    path: str  # relative to the log folder
    group_rows: list[int]  # rows of each row group
    schema: pa.Schema  # every column that the experiment can name, see `named_schema`

    def has(self, column: str) -> bool:
        return bool(self.schema.get_all_field_indices(column))  # by a hash; a list of all names would take longer


@dataclass(frozen=True)
class LogPartition:
    """A partition folder that belongs to a split."""

    split: str
    value: str  # the text after `=`; of nested folders, `LogsConfig.value_of`


@dataclass(frozen=True)
class PartitionFiles:
    """The data files of a partition; `unreadable` is empty unless the experiment skips unreadable files."""

    partition: LogPartition
    files: list[LogFile]
    unreadable: list[str]
    sizes: dict[str, int] = field(default_factory=dict)  # bytes of each file, including unreadable files


def compact(values: list[str]) -> str:
    """A list for a message: in full if it is short, otherwise its first and last values and its length."""
    if len(values) <= 8:
        return ", ".join(values) or "nothing"
    return f"{', '.join(values[:3])}, ..., {values[-1]} ({len(values)} in total)"


def read_files(
    logs: LogsConfig,
    partitions: list[LogPartition],
    current: Collection[str] | None = None,
    read_before: Collection[str] = (),
) -> list[PartitionFiles]:
    """Reads the footers of all files of the given partitions.

    A partition folder without Parquet files is left out with a warning: its data may still arrive.

    Args:
        current: the current files of a Delta table; no others are read.
        read_before: files that the feature table already contains; no other path to them is read.

    Raises:
        UserError: a file cannot be read (unless `unreadable_files: skip`), or no partition has a readable file.
    """
    listed = _list_files(logs, partitions, current, read_before)
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        footers = [[pool.submit(_read_footer, logs.path, path) for path in paths] for paths in listed]
    found = []
    for partition, paths, futures in zip(partitions, listed, footers, strict=True):
        results = [future.result() for future in futures]
        unreadable = {p: r for p, r in zip(paths, results, strict=True) if isinstance(r, str)}
        for path, error in unreadable.items():
            report_unreadable(logs, path, error)
        files = [result for result in results if isinstance(result, LogFile)]
        others = [path for path, result in zip(paths, results, strict=True) if result is None]
        if others:
            logger.warning(
                "%s: not Parquet, so not read: %s. If they are data, convert them to Parquet.",
                logs.folder_of(partition.value),
                compact(others),
            )
        data = {path: size for path, size in paths.items() if path not in others}
        if data:
            found.append(PartitionFiles(partition, files, list(unreadable), data))
        else:
            logger.warning("%s has no Parquet files yet: left out.", logs.folder_of(partition.value))
    if partitions and not any(p.files for p in found):
        raise UserError(
            f"logs.path: found no readable Parquet file in the {len(partitions)} partition folders to read "
            f"below {storage.absolute(logs.path)}. Correct logs.path."
        )
    return found


def report_unreadable(logs: LogsConfig, path: str, error: str) -> None:
    """Warns about a file that is skipped.

    Raises:
        UserError: `unreadable_files` is `fail`.
    """
    if logs.unreadable_files == "skip":
        logger.warning("Skipped the file %s, which cannot be read: %s", path, error)
        return
    raise UserError(
        f"The log file {storage.join(storage.absolute(logs.path), path)} cannot be read: {error}. "
        "Rewrite it, or set logs.unreadable_files=skip to continue without it."
    )


def _list_files(
    logs: LogsConfig, partitions: list[LogPartition], current: Collection[str] | None, read_before: Collection[str]
) -> list[dict[str, int]]:
    """The files of each partition with their sizes in bytes, sorted by path; paths are relative to the log folder."""
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        listed = list(pool.map(lambda partition: _list_entries(logs, partition), partitions))
    folders = [logs.folder_of(partition.value) for partition in partitions]
    files = [data_files(folder, entries) for folder, entries in zip(folders, listed, strict=True)]
    if current is not None:
        _check_current(logs, folders, current, {path for paths in files for path in paths})
        files = [{path: size for path, size in paths.items() if path in current} for paths in files]
    left_out = set(repeated_files(logs.path, [list(paths) for paths in files], read_before))
    links = {
        path
        for folder, entries in zip(folders, listed, strict=True)
        for path, entry in entries.items()
        if entry.kind == "link" and not is_hidden(folder, path)
    }
    if links or left_out:
        logger.warning(
            "links to files or folders of the log itself, or to a folder that contains it, or to what is read under "
            "another name, or to nothing: not read: %s",
            compact(sorted(links | left_out)),
        )
    return [{path: size for path, size in paths.items() if path not in left_out} for paths in files]


def data_files(folder: str, entries: dict[str, Entry]) -> dict[str, int]:
    """The files below a partition folder that may be data, whatever their names, with their sizes, sorted by path."""
    return {p: entry.size for p, entry in sorted(entries.items()) if entry.kind == "file" and not is_hidden(folder, p)}


def _check_current(logs: LogsConfig, folders: list[str], current: Collection[str], found: set[str]) -> None:
    """Raises UserError if a current file of a Delta table is not among the files of its partition."""
    for path in sorted(set(current) - found):
        if "/".join(path.split("/")[: len(logs.levels)]) in folders:
            raise UserError(
                f"{storage.join(storage.absolute(logs.path), path)} is a current file of the Delta table, but it is "
                "not there, or it is hidden or a link into the log. Restore it, or remove it from the table."
            )


def _list_entries(logs: LogsConfig, partition: LogPartition) -> dict[str, Entry]:
    """Everything below a partition folder.

    Raises:
        UserError: the folder contains a table of another format, cannot be listed, or has a name that is not UTF-8.
    """
    folder = logs.folder_of(partition.value)
    entries = list_entries(logs.path, folder)
    check_listed(logs.path, folder, entries)
    names = [path.removeprefix(f"{folder}/") for path in entries]
    check_plain(storage.join(storage.absolute(logs.path), folder), names, logs.folders_in_words)
    return entries


def check_listed(log: str, folder: str, entries: dict[str, Entry]) -> None:
    """Raises UserError if a folder in a partition folder cannot be listed, or if a name is not UTF-8."""
    for path, entry in entries.items():
        if entry.kind == "closed":
            raise not_listed(storage.join(log, path), entry.reason)
        if not path.isascii() and os.fsencode(path) != path.encode(errors="surrogatepass"):
            raise not_utf8(storage.join(log, folder), os.fsencode(path))


def _read_footer(log: str, path: str) -> LogFile | str | None:
    """The file, or the reason why it cannot be read; None if it is not Parquet."""
    filesystem, root = storage.resolve(log)
    try:
        with pq.ParquetFile(f"{root}/{path}", filesystem=filesystem, coerce_int96_timestamp_unit=INT96_UNIT) as file:
            metadata = file.metadata
            rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            return LogFile(path, rows, named_schema(file.schema_arrow, metadata))
    except UNREADABLE as error:
        return one_line(error) if looks_like_parquet(log, path) else None


def looks_like_parquet(log: str, path: str) -> bool:
    """Whether a file is Parquet or was meant to be: by its last bytes, its first bytes if it is cut off, or its name.

    A file that cannot be opened counts as Parquet, so that the reason is reported.
    """
    if ".parq" in storage.name(path).lower():
        return True
    filesystem, root = storage.resolve(log)
    try:
        with filesystem.open_input_file(f"{root}/{path}") as file:
            size = file.size()
            return file.read_at(4, 0) in _MAGIC or (size >= 4 and file.read_at(4, size - 4) in _MAGIC)
    except OSError:
        return True
