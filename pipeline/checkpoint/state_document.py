"""The document `state.json`: everything in a checkpoint that is not a tensor."""

from dataclasses import asdict, dataclass
from typing import Annotated

from pydantic import Field

from pipeline.checkpoint.arithmetic import VERSION
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


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Everything about a run that decides its numbers."""

    __pydantic_config__ = KNOWN_KEYS_ONLY

    workers: int
    threads: int  # of each worker
    device: str
    experiment: Experiment
    table: TrainedTable
    versions: dict[str, str]  # of the libraries that the numbers depend on


@dataclass(frozen=True, kw_only=True)
class CheckpointState(RunSettings):
    """`state.json`: the settings of a run and its progress."""

    progress: Progress
    arithmetic: Annotated[int, Field(ge=1, le=VERSION)] = 1  # of the version that saved it, see arithmetic.py

    @staticmethod
    def of(run: RunSettings, progress: Progress) -> "CheckpointState":
        return CheckpointState(**{**vars(run), "progress": progress, "arithmetic": VERSION})

    def to_json(self) -> Json:
        """The JSON, of all keys. Progress is copied, because the run changes it while a thread writes the file."""
        progress = {"progress": self.progress.to_json()}  # the first key of the file
        sections = {"experiment": self.experiment.model_dump(mode="json"), "table": asdict(self.table)}
        return progress | vars(self) | sections | progress
