"""The files of partitions in the log folder, with their schemas and row groups."""

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipeline import storage
from pipeline.config.logs import LogsConfig
from pipeline.errors import UserError
from pipeline.preprocess.links import surplus_links
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


def read_files(logs: LogsConfig, partitions: list[LogPartition]) -> list[PartitionFiles]:
    """Reads the footers of all files of the given partitions.

    A partition folder without Parquet files is left out with a warning: its data may still arrive.

    Raises:
        UserError: a file cannot be read (unless `unreadable_files: skip`), or no partition has a readable file.
    """
    listed = list_all_files(logs, partitions)
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


def list_all_files(logs: LogsConfig, partitions: list[LogPartition]) -> list[dict[str, int]]:
    """The files of each partition with their sizes in bytes, sorted by path; paths are relative to the log folder."""
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        listed = list(pool.map(lambda partition: _list_files(logs, partition), partitions))
    surplus = surplus_links(logs.path, listed)
    if surplus:
        logger.warning(
            "links to files or folders of the log itself, or to a folder that contains it, or to a file that is read "
            "under another name: not read: %s",
            compact(surplus),
        )
    left_out = set(surplus)
    return [{path: size for path, size in paths.items() if path not in left_out} for paths in listed]


def _list_files(logs: LogsConfig, partition: LogPartition) -> dict[str, int]:
    """Files below a partition folder that may be data, whatever their names.

    Hidden files, and files in a hidden folder such as the `_temporary` of a running job, are not data.

    Raises:
        UserError: the folder contains a table of another format, or cannot be listed.
    """
    folder = logs.folder_of(partition.value)
    below = list_below(storage.join(logs.path, folder), recursive=True)
    check_plain(storage.join(storage.absolute(logs.path), folder), below, logs.folders_in_words)
    found = {
        f"{folder}/{path}": info.size or 0
        for path, info in below.items()
        if info.type == fs.FileType.File and not any(part.startswith(("_", ".")) for part in path.split("/"))
    }
    return dict(sorted(found.items()))


def list_below(folder: str, recursive: bool) -> dict[str, fs.FileInfo]:
    """Everything below a folder, by path relative to it.

    Raises:
        UserError: a name is not UTF-8, or a folder cannot be listed.
    """
    filesystem, root = storage.resolve(folder)
    try:
        found = filesystem.get_file_info(fs.FileSelector(root, recursive=recursive))
        return {info.path[len(root) :].lstrip("/"): info for info in found}
    except UnicodeDecodeError as error:
        raise UserError(
            f"{storage.absolute(folder)} contains something whose name is not UTF-8: {error.object!r}. "
            "Rename it, or move it away."
        ) from None
    except OSError as error:
        raise UserError(
            f"The folder {storage.absolute(folder)} cannot be listed: {one_line(error)}. Check its permissions."
        ) from error


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


def one_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
