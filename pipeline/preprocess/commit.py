"""Commits: a partition is complete when its record is written, the table when its manifest is written."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline import storage
from pipeline.config.logs import LogsConfig
from pipeline.errors import UserError
from pipeline.preprocess.chains import report_conditional_tasks
from pipeline.preprocess.discover import PartitionFiles, compact, report_unreadable
from pipeline.preprocess.entries import ClassifiedEntry
from pipeline.preprocess.preprocess_plan import PreprocessPlan
from pipeline.preprocess.rows import reasons_of_skip
from pipeline.preprocess.tasks import Done, run_tasks
from pipeline.preprocess.text_hints import report_texts
from pipeline.preprocess.transform import Transform, transform_unit
from pipeline.preprocess.units import Unit, cut_units
from pipeline.preprocess.write import lane_folder, quarantine_folder
from pipeline.progress_bar import ProgressBar
from pipeline.table.content import UNLISTED_VALUES, merged
from pipeline.table.manifest import LaneFile, Partition
from pipeline.table.partition_record import PartitionRecord, read_records, write_record
from pipeline.table_folder import QUARANTINE

logger = logging.getLogger(__name__)


def warn_of_late_files(
    logs: LogsConfig, table: str, records: list[PartitionRecord], entries: dict[str, ClassifiedEntry]
) -> None:
    """Warns about partitions whose log files have changed since they were read. Partitions may leave the log.

    Args:
        entries: what is in the log now, see `classify_entries`.
    """
    in_folder: dict[str, dict[str, int]] = defaultdict(dict)
    for path, entry in entries.items():
        if entry.kind in ("read", "unreadable", "late"):
            in_folder["/".join(path.split("/")[: len(logs.levels)])][path] = entry.bytes
    for record in records:
        folder = logs.folder_of(record.partition.value)
        before, now = record.log_files, in_folder[folder]
        if before is None or not now:
            continue
        changes = _file_changes(before, now)
        if changes:
            logger.warning(
                "%s: its files in the log have changed since they were read (%s), and the feature table does not "
                "contain the change. To include it, delete %s and run again, or rebuild the whole table with "
                "--overwrite%s.",
                folder,
                changes,
                storage.join(table, record.file),
                "; the rows of files that are gone will then leave the table" if before.keys() - now else "",
            )


def _file_changes(before: dict[str, int], now: dict[str, int]) -> str:
    changes = {
        "new": [path for path in now if path not in before],
        "gone": [path for path in before if path not in now],
        "of another size": [path for path in now if path in before and now[path] != before[path]],
    }
    return "; ".join(f"{what}: {compact(paths)}" for what, paths in changes.items() if paths)


def delete_superseded_partitions(logs: LogsConfig, table: str, made_with: str) -> None:
    """Deletes partitions that no manifest names any more: made with other settings, or rebuilt in another split.

    A partition that is now in no split is kept: a later split may include it again. A record is deleted before its
    files, so that a record never names missing files; files without a record are deleted whenever they are found.
    """
    kept, splits = set(), set(logs.splits)
    for record in read_records(table, made_with):
        split, value = record.partition.split, record.partition.value
        splits.add(split)
        if record.made_with == made_with and logs.split_of(value) in (split, None):
            kept |= {(split, value), (QUARANTINE, value)}
        else:
            storage.delete_file(table, record.file)
    for folder in [*splits, QUARANTINE]:
        for name in storage.list_folder(storage.join(table, folder)):
            value = name.removeprefix(f"{logs.partition_name}=")
            if value != name and (folder, value) not in kept:
                storage.delete_folder(table, f"{folder}/{name}")


def transform_partitions(shared: Transform, found: list[PartitionFiles], made_with: str) -> None:
    """Transforms partitions and commits each as soon as its last unit is done.

    Args:
        shared: data that all tasks share.
        found: the partitions.
        made_with: `TableSettings.made_with` of the table, for the records.

    Raises:
        UserError: a file cannot be read, or too many rows of a partition cannot be used.
    """
    plan = shared.plan
    units: list[Unit] = []
    open_partitions = {}
    for files in found:
        partition = _OpenPartition(plan, files, made_with)
        partition.clear()
        open_partitions[files.partition.value] = partition
        units += partition.units
        if not partition.units:
            partition.commit()
    after_zero, texts = [], []
    lost: dict[str, list[str]] = defaultdict(list)
    with _warning_of_lost_columns(lost), ProgressBar("transform", sum(unit.rows for unit in units)) as progress:
        for done in run_tasks(transform_unit, [unit.item for unit in units], shared, plan.task_memory):
            unit = Unit(**done.item)
            for column, reason in done.result.get("lost_columns", {}).items():
                lost[column].append(f"{unit.file}: {reason}")
            partition = open_partitions[unit.partition]
            partition.add(unit, done)
            progress.add(unit.rows)
            if done.unreadable is None:
                after_zero.append(done.result["after_zero"])
                texts.append(done.result["texts"])
            if partition.complete:
                partition.commit()
    report_conditional_tasks(plan.sections, after_zero)
    report_texts(plan.sections, texts)


@contextmanager
def _warning_of_lost_columns(lost: dict[str, list[str]]) -> Iterator[None]:
    """Warns once per column that some quarantine files lack; also if the job fails, for those who look at them."""
    try:
        yield
    finally:
        for column, places in lost.items():
            logger.warning(
                "The column %r could not be carried into the quarantine files of %s units (%s%s). Their other columns "
                "are there, with the file and the number of each row.",
                column,
                f"{len(places):,}",
                places[0],
                ", ..." if len(places) > 1 else "",
            )


class _OpenPartition:
    """A partition whose units are being transformed."""

    def __init__(self, plan: PreprocessPlan, found: PartitionFiles, made_with: str) -> None:
        self._plan = plan
        self._made_with = made_with
        self._found = found
        self.units = cut_units(found)
        self._results: dict[int, dict[str, Any]] = {}
        self._unreadable: set[str] = set()  # files with at least one unreadable unit
        self._done = 0

    @property
    def complete(self) -> bool:
        return self._done == len(self.units)

    def clear(self) -> None:
        """Deletes files that a killed job may have left."""
        partition = self._found.partition
        for folder in (
            lane_folder(self._plan, partition.split, partition.value),
            quarantine_folder(self._plan, partition.value),
        ):
            storage.delete_folder(self._plan.table, folder)

    def add(self, unit: Unit, done: Done) -> None:
        """Adds the result of a unit.

        Raises:
            UserError: its file cannot be read, and `unreadable_files` is `fail`.
        """
        self._done += 1
        if done.unreadable is None:
            self._results[unit.number] = done.result
        elif unit.file not in self._unreadable:
            report_unreadable(self._plan.sections.logs, unit.file, done.unreadable)
            self._unreadable.add(unit.file)

    def commit(self) -> None:
        """Writes the partition's record.

        Raises:
            UserError: too many rows were quarantined.
        """
        self._drop_damaged_files()
        record = self._record()
        self._check_quarantined(record)
        write_record(self._plan.table, PartitionRecord(record, self._made_with, self._found.sizes))
        self._results.clear()  # of a log with many partitions, only those of the open ones are kept

    def _drop_damaged_files(self) -> None:
        """Deletes the output of the readable units of damaged files: a file is used whole or not at all."""
        for unit in self.units:
            if unit.file in self._unreadable and unit.number in self._results:
                quarantined = f"{quarantine_folder(self._plan, unit.partition)}/{unit.name}.parquet"
                paths = [path for _, path, _, _ in self._results.pop(unit.number)["lanes"]]
                for path in [*paths, quarantined]:
                    storage.delete_file(self._plan.table, path)

    def _record(self) -> Partition:
        units = [unit for unit in self.units if unit.number in self._results]
        results = [self._results[unit.number] for unit in units]
        lanes: list[list[LaneFile]] = [[] for _ in range(self._plan.sections.table.lanes)]
        for result in results:
            for lane, path, rows, size in result["lanes"]:
                lanes[lane].append(LaneFile(path, rows, size))
        reasons = _sum([result["reasons"] for result in results])
        return Partition(
            split=self._found.partition.split,
            value=self._found.partition.value,
            rows_read=sum(unit.rows for unit in units),
            quarantined=sum(result["quarantined"] for result in results),
            filtered=sum(result["filtered"] for result in results),
            lanes=lanes,
            reasons=dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
            skipped_files=sorted({*self._found.unreadable, *self._unreadable}),
            unknown=_sum([result["unknown"] for result in results]),
            missing=_sum([result["missing"] for result in results]),
            ids=_sum([result["ids"] for result in results]),
            sampled_out=sum(result["sampled_out"] for result in results),
            unlabelled=sum(result["unlabelled"] for result in results),
            missing_columns=self._missing_columns(units),
            content=merged([result["content"] for result in results], UNLISTED_VALUES) if results else None,
        )

    def _missing_columns(self, units: list[Unit]) -> dict[str, int]:
        lacking = self._plan.sources.lacking
        return _sum([dict.fromkeys(lacking.get(unit.file, ()), unit.rows) for unit in units])

    def _check_quarantined(self, record: Partition) -> None:
        if not record.quarantined:
            return
        logs = self._plan.sections.logs
        reasons = "; ".join(f"{reason} ({rows:,})" for reason, rows in list(record.reasons.items())[:3])
        message = (
            f"{record.quarantined:,} of {record.rows_read:,} rows of {logs.folder_of(record.value)} cannot be used: "
            f"{reasons}"
        )
        if record.quarantined <= logs.max_quarantined * record.rows_read:
            logger.warning("%s", message)
            return
        raise UserError(
            f"{message}. That is more than logs.max_quarantined ({logs.max_quarantined:g} of the rows) allows. Look at "
            f"them in {storage.join(self._plan.table, quarantine_folder(self._plan, record.value))}, then fix the "
            f"log or the experiment, or raise logs.max_quarantined.{self._hint_of_labels(record)}"
        )

    def _hint_of_labels(self, record: Partition) -> str:
        tasks = self._plan.sections.tasks
        names = [task.name for task in tasks if record.reasons.keys() & reasons_of_skip(task)]
        if not names or len(tasks) == 1:
            return ""
        keys = " and ".join(f"tasks.{name}.missing" for name in names)
        return f" If these labels are missing for a reason, set {keys} to `skip`: other tasks can use such rows."


def _sum(counts: list[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in counts:
        total.update(part)
    return dict(total)  # `asdict` cannot copy a Counter
