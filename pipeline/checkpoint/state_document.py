"""The document `state.json`: everything in a checkpoint that is not a tensor."""

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
    """Everything about a run that decides its numbers."""

    __pydantic_config__ = KNOWN_KEYS_ONLY

    workers: int
    threads: int  # of each worker
    device: str
    experiment: Experiment
    table: TrainedTable
    versions: dict[str, str]  # of the libraries that the numbers depend on


@dataclass(frozen=True)
class CheckpointState(RunSettings):
    """`state.json`: the settings of a run and its progress."""

    progress: Progress

    @staticmethod
    def of(run: RunSettings, progress: Progress) -> "CheckpointState":
        return CheckpointState(run.workers, run.threads, run.device, run.experiment, run.table, run.versions, progress)

    def to_json(self) -> Json:
        """The JSON. Progress is copied, because the run changes it while a thread writes the file."""
        return {
            "progress": self.progress.to_json(),
            "workers": self.workers,
            "threads": self.threads,
            "device": self.device,
            "experiment": self.experiment.model_dump(mode="json"),
            "table": asdict(self.table),
            "versions": self.versions,
        }
