"""The losses of continuous tasks: their keys in the experiment file and what they demand of a task.

Their functions are in models/continuous.py, under the same names. No torch here: every command reads this.
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from models.section import ModelSection

LossName = Literal["mse", "huber", "ziln", "tweedie"]


@dataclass(frozen=True)
class LossFacts:
    """A loss, as far as it can be described without its function."""

    use: str
    """What it is for, a row of docs/models.md."""
    predicts: str
    """What its prediction is of the target, in the same row."""
    keys: tuple[str, ...] = ()
    """Keys of `LossConfig` that belong to this loss alone."""
    of_amounts: bool = False
    """The target is an amount itself: no transform, and no label below zero."""
    can_be_negative: bool = False
    """Its value can fall below zero, which no learned weight of a task can be used with."""


LOSSES: dict[LossName, LossFacts] = {
    "mse": LossFacts(
        "a target that a `transform` makes harmless, such as log1p of a watch time", "the mean, on the training scale"
    ),
    "huber": LossFacts("outliers", "between median and mean", keys=("delta",)),
    "ziln": LossFacts(
        "amounts with many zeros and a long tail (revenue)",
        "P(above zero) × mean of a log-normal",
        of_amounts=True,
        can_be_negative=True,
    ),
    "tweedie": LossFacts("the same with one unit", "the mean", keys=("power",), of_amounts=True),
}


class LossConfig(ModelSection):
    """The keys of a task that say how its loss is computed."""

    loss: LossName = "mse"
    """Of a continuous task: squared error, Huber, zero-inflated log-normal, or Tweedie."""
    delta: float = Field(default=1.0, gt=0)
    """Of huber: the error from which it grows linearly."""
    power: float = Field(default=1.5, gt=1, lt=2)
    """Of tweedie: near 1 like counts, near 2 like amounts."""

    @property
    def loss_facts(self) -> LossFacts:
        return LOSSES[self.loss]

    @model_validator(mode="after")
    def _keys_fit_the_loss(self) -> "LossConfig":
        defaults = LossConfig.model_fields
        changed = {key for key, value in self if key in defaults and value != defaults[key].default}
        for loss, facts in LOSSES.items():
            for key in facts.keys:
                if key in changed and loss != self.loss:
                    raise ValueError(f"`{key}` belongs to `loss: {loss}` and to nothing else")
        return self
