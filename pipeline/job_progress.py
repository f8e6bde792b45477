"""How far a job is. Log records carry it, and `manygate status` and the gauges of `cluster/gauges.py` read it."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

log = logging.getLogger(__name__)

Metrics = dict[str, dict[str, float | None]]
"""Task -> metric -> value; None if it is undefined."""


class SavedCheckpoint(BaseModel):
    """A complete checkpoint."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    step: int
    uri: str
    time: float | None = None  # seconds since 1970; None if an earlier job saved it


class MachineWorkers(BaseModel):
    """The workers on one machine."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    machine: str  # its address
    count: int

    def __str__(self) -> str:
        return f"{self.count} on {self.machine}"


class JobProgress(BaseModel):
    """What one log record reports, or the newest value of everything that a job has reported. None: not reported.

    A job's log may have been written by another version: keys that this version does not know are ignored.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    stage: str | None = None  # what counts its rows, or "training"
    rows: int | None = None
    total_rows: int | None = None
    step: int | None = None
    total_steps: int | None = None  # the step at which training will end
    epoch: int | None = None
    samples_per_second: float | None = None
    data_wait: float | None = None  # share of the time that the first worker waited for its next batch
    eta_s: float | None = None
    metrics: Metrics | None = None  # of the training steps since the last log line
    validation: Metrics | None = None
    validation_step: int | None = None
    checkpoint: SavedCheckpoint | None = None
    restarts: int | None = None
    workers: list[MachineWorkers] | None = None

    def updated(self, newer: "JobProgress") -> "JobProgress":
        """The newest value of everything. A new stage has rows and a time of its own."""
        kept = self
        if newer.stage is not None and newer.stage != self.stage:
            kept = self.model_copy(update={"rows": None, "total_rows": None, "eta_s": None})
        return kept.model_copy(update={name: value for name, value in newer if name in newer.model_fields_set})


def reported(progress: JobProgress) -> dict[str, Any]:
    """The argument `extra` of a logging call whose record reports progress."""
    return {"progress": progress.model_dump(exclude_unset=True)}


def progress_of(record: logging.LogRecord) -> JobProgress | None:
    """The progress that a record reports; None if it reports none, or in a form that this version cannot read."""
    found = record.__dict__.get("progress")
    if found is None:
        return None
    try:
        return JobProgress.model_validate(found)
    except ValidationError:
        return None


def latest(records: Iterable[logging.LogRecord]) -> JobProgress:
    """The newest value of everything that the records of a job report."""
    newest = JobProgress()
    for record in records:
        progress = progress_of(record)
        if progress is not None:
            newest = newest.updated(progress)
    return newest


def log_workers(machines: Sequence[str], restarts: int) -> None:
    """Logs where the workers of a group run; called each time that a group has started.

    Args:
        machines: the address of each worker's machine.
        restarts: times that workers of this job were started again.
    """
    workers = [MachineWorkers(machine=machine, count=count) for machine, count in sorted(Counter(machines).items())]
    placed = ", ".join(map(str, workers))
    log.info("Workers: %s.", placed, extra=reported(JobProgress(workers=workers, restarts=restarts)))
