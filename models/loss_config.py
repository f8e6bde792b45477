"""The losses of tasks: their keys in the experiment file and their requirements on a task.

The functions of continuous tasks are in models/continuous.py, under the names of the losses; that of binary tasks is in
models/binary.py. No torch is imported here, because every command imports this file.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator, model_validator

from models.section import ModelSection


@dataclass(frozen=True)
class LossFacts:
    """Facts about a loss that do not need its function."""

    use: str
    """Its purpose, for its row in docs/models.md."""
    predicts: str
    """The statistic of the target that it predicts, for the same row."""
    statistic: str = "mean"
    """The same in words for prediction files, for a target that is not transformed."""
    keys: tuple[str, ...] = ()
    """Keys of `LossConfig` that only this loss uses."""
    of_amounts: bool = False
    """Whether the target must be an amount: no transform, and no negative label."""
    of_logarithms: bool = False
    """Whether the target must be a logarithm, `transform: log1p`, of which it predicts the standard deviation too."""
    can_be_negative: bool = False
    """Whether its value can be negative. Learned task weights cannot be used with such a loss."""


LOSSES: dict[str, LossFacts] = {
    "mse": LossFacts(
        "a target whose extreme values a `transform` reduces, such as log1p of a watch time",
        "the mean, on the training scale",
    ),
    "huber": LossFacts(
        "targets with outliers", "between the median and the mean", "between median and mean", keys=("delta",)
    ),
    "ziln": LossFacts(
        "amounts with many zeros and a long tail (revenue)",
        "P(above zero) × mean of a log-normal distribution",
        of_amounts=True,
        can_be_negative=True,
    ),
    "lognormal": LossFacts(
        "a positive target with a long tail, such as a watch time, whose spread differs between rows",
        "the mean exp(mu + s²/2) - 1 of a log-normal distribution whose mu and s are learned",
        of_logarithms=True,
        can_be_negative=True,
    ),
    "tweedie": LossFacts("the same amounts, with one output unit", "the mean", keys=("power",), of_amounts=True),
    "weighted_logistic": LossFacts(
        "watch times, with one output unit whose gradient is never larger than 1 or the label",
        "the mean",
        of_amounts=True,
    ),
}

BINARY_KEYS = ("positive_weight", "focal")
"""Keys of `LossConfig` that only binary tasks use. They do not change what a model computes, only what it learns."""

if TYPE_CHECKING:  # mypy cannot read a Literal that is made from a dict
    LossName = str
else:
    LossName = Literal[tuple(LOSSES)]


class LossConfig(ModelSection):
    """The keys of a task that define how its loss is computed."""

    loss: LossName = "mse"
    """The loss of a continuous task."""
    delta: float = Field(default=1.0, gt=0)
    """For huber: the absolute error above which the loss is linear."""
    power: float = Field(default=1.5, gt=1, lt=2)
    """For tweedie: the variance power; near 1 for counts, near 2 for amounts."""
    positive_weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """For binary tasks: the loss of a positive is multiplied by it."""
    focal: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """For binary tasks: gamma of the focal loss; 0 is cross-entropy."""

    @field_validator("loss", mode="before")
    @classmethod
    def _focal_is_a_key(cls, loss: object) -> object:
        if loss == "focal":
            raise ValueError("the focal loss is a key of binary tasks, with its gamma: `focal: 2`, without `loss`")
        return loss

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
                    raise ValueError(f"`{key}` belongs to `loss: {loss}`, and no other loss uses it")
        return self
