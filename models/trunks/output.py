"""What every trunk gives."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class TrunkOutput:
    """Hidden vectors a task, with what the trunk adds to the loss and what it tells about itself."""

    hidden: Tensor  # (tasks, batch, h)
    auxiliary: dict[str, Tensor] = field(default_factory=dict)  # name -> scalar, already weighted
    diagnostics: dict[str, Tensor] = field(default_factory=dict)  # name -> any shape, detached
