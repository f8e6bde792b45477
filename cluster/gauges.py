"""The progress of a job as Prometheus series: what `manygate status` shows, as gauges of Ray.

Ray exports them on every machine, with the prefix `ray_`. `grafana.json` shows them.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from ray.util.metrics import Gauge

from pipeline.job_progress import JobProgress, Metrics, progress_of
from pipeline.log_records import log_fields


@dataclass(frozen=True)
class Sample:
    """One value of a series."""

    name: str
    value: float
    labels: dict[str, str]  # without `run`, which all series have


GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "manygate_rows": ("Rows done in this stage of the job", ("stage",)),
    "manygate_total_rows": ("Rows of this stage of the job", ("stage",)),
    "manygate_training_step": ("Steps trained", ()),
    "manygate_training_total_steps": ("The step at which training will end", ()),
    "manygate_training_epoch": ("Current epoch, from 0", ()),
    "manygate_samples_per_second": ("Rows trained on per second, over all workers", ()),
    "manygate_data_wait_ratio": ("Share of the time that the first worker waited for its next batch", ()),
    "manygate_eta_seconds": ("Estimated time to the end of training or of the stage", ()),
    "manygate_metric": (
        "Metrics of training since the last log line, and of the last validation",
        ("task", "metric", "split"),
    ),
    "manygate_checkpoint_step": ("Step of the last checkpoint", ()),
    "manygate_checkpoint_timestamp_seconds": ("When the last checkpoint was complete, in seconds since 1970", ()),
    "manygate_restarts": ("Times that the workers were started again", ()),
    "manygate_workers": ("Workers on a machine", ("machine",)),
}
"""Every series: its description, and its labels in addition to `run`."""


def samples(progress: JobProgress) -> Iterator[Sample]:
    """The values that one record reports."""
    stage = {"stage": progress.stage or ""}
    checkpoint = progress.checkpoint
    for name, value, labels in (
        ("manygate_rows", progress.rows, stage),
        ("manygate_total_rows", progress.total_rows, stage),
        ("manygate_training_step", progress.step, {}),
        ("manygate_training_total_steps", progress.total_steps, {}),
        ("manygate_training_epoch", progress.epoch, {}),
        ("manygate_samples_per_second", progress.samples_per_second, {}),
        ("manygate_data_wait_ratio", progress.data_wait, {}),
        ("manygate_eta_seconds", progress.eta_s, {}),
        ("manygate_checkpoint_step", checkpoint.step if checkpoint else None, {}),
        ("manygate_checkpoint_timestamp_seconds", checkpoint.time if checkpoint else None, {}),
        ("manygate_restarts", progress.restarts, {}),
    ):
        if value is not None:
            yield Sample(name, float(value), labels)
    yield from _metric_samples(progress.metrics, "train")
    yield from _metric_samples(progress.validation, "valid")
    for part in progress.workers or []:
        yield Sample("manygate_workers", part.count, {"machine": part.machine})


def _metric_samples(metrics: Metrics | None, split: str) -> Iterator[Sample]:
    for task, values in (metrics or {}).items():
        for metric, value in values.items():
            if value is not None:
                yield Sample("manygate_metric", value, {"task": task, "metric": metric, "split": split})


class GaugeHandler(logging.Handler):
    """Sets the gauges from the records of this process, which contain those of its workers."""

    def __init__(self) -> None:
        super().__init__()
        self._gauges = {name: Gauge(name, text, ("run", *labels)) for name, (text, labels) in GAUGES.items()}
        self._machines: set[tuple[str, str]] = set()  # (run, machine)

    def emit(self, record: logging.LogRecord) -> None:
        progress = progress_of(record)
        if progress is None:
            return
        run = record.__dict__.get("run") or log_fields.run or ""
        if progress.workers is not None:  # machines that have none any more
            for machine in [machine for known, machine in self._machines if known == run]:
                self._gauges["manygate_workers"].set(0, {"run": run, "machine": machine})
            self._machines |= {(run, part.machine) for part in progress.workers}
        for sample in samples(progress):
            self._gauges[sample.name].set(sample.value, {"run": run, **sample.labels})


def export_progress() -> None:
    """From now on, log records of this process set the gauges. Ray is connected; a second call changes nothing."""
    root = logging.getLogger()
    if not any(isinstance(handler, GaugeHandler) for handler in root.handlers):
        root.addHandler(GaugeHandler())
