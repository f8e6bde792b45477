"""The counters of a run: all of its future that is not in a tensor."""

from dataclasses import dataclass, field
from typing import Literal

from pipeline.config.training import TrainingConfig
from pipeline.documents import KNOWN_KEYS_ONLY
from pipeline.loading.batch import Position

Ending = Literal["finished", "stopped early", "interrupted"]


@dataclass(frozen=True)
class TrainingWindow:
    """The partitions that are trained on together, for `training.epochs` epochs; days that come later are the next."""

    __pydantic_config__ = KNOWN_KEYS_ONLY

    partitions: dict[str, str]  # value of the partition -> digest of its files in the feature table
    steps_per_epoch: int
    first_step: int = 0  # steps of the run before this span

    def total_steps(self, training: TrainingConfig) -> int:
        """Steps of the span: its epochs, or fewer by `max_steps`."""
        steps = training.epochs * self.steps_per_epoch
        return min(steps, training.max_steps or steps)


@dataclass
class Progress:
    """What `state.json` holds under `progress`."""

    __pydantic_config__ = KNOWN_KEYS_ONLY

    span: TrainingWindow
    earlier: dict[str, str] = field(default_factory=dict)  # partitions of earlier spans, as in Span
    step: int = 0  # global batches trained on
    position: Position = field(default_factory=Position)  # of the next batch of the span
    best: float | None = None  # value of the early-stopping metric, in this span
    best_step: int | None = None
    stale_validations: int = 0  # since the best one

    @property
    def partitions(self) -> dict[str, str]:
        """All partitions that the run has begun to train on, as in Span."""
        return {**self.earlier, **self.span.partitions}

    @property
    def step_in_span(self) -> int:
        return self.step - self.span.first_step

    def ending(self, training: TrainingConfig) -> Ending | None:
        """Why the span is over; None where it goes on."""
        stopping = training.early_stopping
        if stopping and self.stale_validations >= stopping.patience:
            return "stopped early"
        return "finished" if self.step_in_span >= self.span.total_steps(training) else None

    def go_on_with(self, span: TrainingWindow) -> None:
        """Begins another span. What is best is looked for anew: the valid split may have moved on, too."""
        self.earlier = self.partitions
        self.span, self.position = span, Position()
        self.best = self.best_step = None
        self.stale_validations = 0

    def forget_partitions(self) -> None:
        """All partitions count as new: they were made again, with labels or scenarios that were not there."""
        self.go_on_with(TrainingWindow({}, 0, first_step=self.step))
        self.earlier = {}
