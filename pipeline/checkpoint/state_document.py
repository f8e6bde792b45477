"""What a checkpoint says beside its tensors: the document `state.json`."""

from dataclasses import asdict, dataclass

from pipeline.checkpoint.progress import Progress
from pipeline.config.experiment import Experiment
from pipeline.documents import KNOWN_KEYS_ONLY, Json


@dataclass(frozen=True)
class TrainedTable:
    """The feature table that a run trains on."""

    __pydantic_config__ = KNOWN_KEYS_ONLY

    fingerprint: str
    lanes: int
    lineage: str
    table_rows: dict[str, int]  # embedding table -> rows


@dataclass(frozen=True)
class RunSettings:
    """All that a run is made of, as far as it decides its numbers."""

    __pydantic_config__ = KNOWN_KEYS_ONLY

    workers: int
    threads: int  # of each worker
    device: str
    experiment: Experiment
    table: TrainedTable
    versions: dict[str, str]  # of the libraries that compute


@dataclass(frozen=True)
class CheckpointState(RunSettings):
    """`state.json`: what a run is made of, and how far it has come."""

    progress: Progress

    @staticmethod
    def of(run: RunSettings, progress: Progress) -> "CheckpointState":
        return CheckpointState(run.workers, run.threads, run.device, run.experiment, run.table, run.versions, progress)

    def to_json(self) -> Json:
        """The JSON, of which progress is a copy: the run changes it while a thread writes."""
        return {
            "progress": asdict(self.progress),
            "workers": self.workers,
            "threads": self.threads,
            "device": self.device,
            "experiment": self.experiment.model_dump(mode="json"),
            "table": asdict(self.table),
            "versions": self.versions,
        }
