"""Commits: a partition counts once its record is written, the table once its manifest is."""

import logging
from dataclasses import asdict
from typing import Any

from pipeline import storage
from pipeline.errors import UserError
from pipeline.preprocess.discover import PartitionFiles, report_unreadable
from pipeline.preprocess.plan import Plan
from pipeline.preprocess.progress import Progress
from pipeline.preprocess.tasks import Done, run_tasks
from pipeline.preprocess.transform import Transform, transform_unit
from pipeline.preprocess.units import Unit, cut_units
from pipeline.preprocess.write import lane_folder, quarantine_folder
from pipeline.table.manifest import LaneFile, Partition, partition_from_dict

logger = logging.getLogger(__name__)

RECORDS = "partitions"


def read_committed(table: str) -> list[Partition]:
    """Partitions of the table that are complete."""
    folder = storage.join(table, RECORDS)
    records = [storage.read_json(storage.join(folder, name)) for name in storage.list_folder(folder)]
    return [partition_from_dict(record) for record in records if record is not None]


def transform_partitions(shared: Transform, found: list[PartitionFiles]) -> None:
    """Transforms partitions and commits each as soon as its last unit is done.

    Raises:
        UserError: a file cannot be read, or too many rows of a partition cannot be used.
    """
    plan = shared.plan
    units: list[Unit] = []
    open_partitions = {}
    for files in found:
        partition = _OpenPartition(plan, files)
        partition.clear()
        open_partitions[files.partition.value] = partition
        units += partition.units
        if not partition.units:
            partition.commit()
    with Progress("transform", sum(unit.rows for unit in units)) as progress:
        for done in run_tasks(transform_unit, [unit.item for unit in units], shared):
            unit = Unit(**done.item)
            partition = open_partitions[unit.partition]
            partition.add(unit, done)
            progress.add(unit.rows)
            if partition.complete:
                partition.commit()


class _OpenPartition:
    """A partition whose units are being transformed."""

    def __init__(self, plan: Plan, found: PartitionFiles) -> None:
        self._plan = plan
        self._found = found
        self.units = cut_units(found)
        self._results: dict[int, dict[str, Any]] = {}
        self._unreadable: set[str] = set()  # files of which a unit could not be read
        self._done = 0

    @property
    def complete(self) -> bool:
        return self._done == len(self.units)

    def clear(self) -> None:
        """Deletes what a job that was killed may have left."""
        partition = self._found.partition
        for folder in (
            lane_folder(self._plan, partition.split, partition.value),
            quarantine_folder(self._plan, partition.value),
        ):
            storage.delete_folder(storage.join(self._plan.table, folder))

    def add(self, unit: Unit, done: Done) -> None:
        """Takes the result of a unit.

        Raises:
            UserError: its file cannot be read, and the experiment wants to fail then.
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
        name = f"{record.split}-{record.value}.json"
        storage.write_json(storage.join(self._plan.table, RECORDS, name), asdict(record))

    def _drop_damaged_files(self) -> None:
        """A file is taken whole or not at all: deletes what its readable units gave."""
        for unit in self.units:
            if unit.file in self._unreadable and unit.number in self._results:
                quarantined = f"{quarantine_folder(self._plan, unit.partition)}/{unit.name}.parquet"
                paths = [path for _, path, _, _ in self._results.pop(unit.number)["lanes"]]
                for path in [*paths, quarantined]:
                    storage.delete_file(storage.join(self._plan.table, path))

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
        )

    def _check_quarantined(self, record: Partition) -> None:
        if not record.quarantined:
            return
        logs = self._plan.sections.logs
        reasons = "; ".join(f"{reason} ({rows:,})" for reason, rows in list(record.reasons.items())[:3])
        told = (
            f"{record.quarantined:,} of {record.rows_read:,} rows of {logs.partition}={record.value} cannot be used: "
            f"{reasons}"
        )
        if record.quarantined <= logs.max_quarantined * record.rows_read:
            logger.warning("%s", told)
            return
        raise UserError(
            f"{told}. That is more than logs.max_quarantined ({logs.max_quarantined:g} of the rows) allows. Look at "
            f"them in {storage.join(self._plan.table, quarantine_folder(self._plan, record.value))}, then mend the "
            "log or the experiment, or raise logs.max_quarantined."
        )


def _sum(counts: list[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in counts:
        for name, number in one.items():
            total[name] = total.get(name, 0) + number
    return total
