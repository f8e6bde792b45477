"""The counters of a run: all of its future that is not in a tensor."""

from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.loading.batch import Position


@dataclass
class Progress:
    """What `state.json` holds under `progress`."""

    step: int = 0  # global batches trained on
    position: Position = field(default_factory=Position)  # of the next batch to train on
    best: float | None = None  # value of the early-stopping metric
    best_step: int | None = None
    stale_validations: int = 0  # since the best one

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "Progress":
        return Progress(**{**data, "position": Position(**data["position"])})
