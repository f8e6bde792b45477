"""The counters of a run: everything that decides its future and is not a tensor."""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.training import TrainingConfig
from pipeline.documents import KNOWN_KEYS_ONLY, Json
from pipeline.loading.position import Position

Ending = Literal["finished", "stopped early", "interrupted"]


@dataclass(frozen=True)
class TrainingWindow:
    """The partitions that are trained on together, for `training.epochs` epochs. Later days are the next window."""

    __pydantic_config__ = KNOWN_KEYS_ONLY

    partitions: dict[str, str]  # value of the partition -> digest of its files in the feature table
    steps_per_epoch: int
    first_step: int = 0  # steps of the run before this window

    def total_steps(self, training: TrainingConfig) -> int:
        """Steps of the window: those of its epochs, or `max_steps` if that is less."""
        steps = training.epochs * self.steps_per_epoch
        return min(steps, training.max_steps or steps)


@dataclass(frozen=True)
class SavedSmearing:
    """The smearing factors of a validation, see pipeline/evaluation/log_unit.py."""

    __pydantic_config__ = KNOWN_KEYS_ONLY

    step: int  # of the validation
    factors: dict[str, dict[str, float]]  # by task, and by scenario


@dataclass
class Progress:
    """The value of `progress` in `state.json`, where the key of `window` is `span`."""

    __pydantic_config__ = KNOWN_KEYS_ONLY

    window: Annotated[TrainingWindow, Field(validation_alias="span")]
    earlier: dict[str, str] = field(default_factory=dict)  # partitions of earlier windows, value -> digest
    step: int = 0  # global batches trained on
    position: Position = field(default_factory=Position)  # of the next batch of the window
    best: float | None = None  # value of the early-stopping metric, in this window
    best_step: int | None = None
    stale_validations: int = 0  # since the best one
    smearing: SavedSmearing | None = None  # of the last validation

    def to_json(self) -> Json:
        """A copy, for `state.json`."""
        fields = asdict(self)
        return {"span": fields.pop("window"), **fields}

    @property
    def partitions(self) -> dict[str, str]:
        """All partitions that the run has begun to train on, value -> digest."""
        return {**self.earlier, **self.window.partitions}

    @property
    def step_in_window(self) -> int:
        return self.step - self.window.first_step

    def ending(self, training: TrainingConfig) -> Ending | None:
        """Why the window is over; None if it is not over."""
        stopping = training.early_stopping
        if stopping and self.stale_validations >= stopping.patience:
            return "stopped early"
        return "finished" if self.step_in_window >= self.window.total_steps(training) else None

    def is_validated(self, training: TrainingConfig) -> bool:
        """Whether a validation of this window was due, if the run has a valid split."""
        every, first = training.validate_every_steps, self.window.first_step
        is_due = self.position.epoch > 0 if every is None else self.step // every > first // every
        return is_due or self.step_in_window >= self.window.total_steps(training)

    def begin_window(self, window: TrainingWindow) -> None:
        """Begins the next window. The search for the best step starts again: the valid split may have changed too."""
        self.earlier = self.partitions
        self.window, self.position = window, Position()
        self.best = self.best_step = None
        self.stale_validations = 0

    def forget_partitions(self) -> None:
        """Makes all partitions count as new: they were made again, with labels or scenarios that they did not have."""
        self.begin_window(TrainingWindow({}, 0, first_step=self.step))
        self.earlier = {}
