"""The sections of the logs, of the scenarios and of the tasks."""

import re
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from models.inputs import TaskKind
from models.loss_config import LossConfig
from pipeline.errors import UserError
from pipeline.section import Section
from pipeline.table_folder import NamePart, check_split

PartitionValue = int | str
Name = r"^[A-Za-z_][A-Za-z0-9_]*$"


class JoinConfig(Section):
    """A small side table, one row per key, whose columns are added to every log row with that key."""

    path: str
    key: str


class NegativesConfig(Section):
    """Down-sampling of the rows of the train split whose label of one binary task is 0."""

    task: str
    keep: float = Field(gt=0, le=1)
    """Share of these rows that is kept, each with the weight 1 / keep."""


class LogsConfig(Section):
    """Hive-partitioned Parquet: where it is, how it is split, and how unusable rows and files are handled."""

    path: str
    partition: NamePart
    joins: list[JoinConfig] = []
    splits: dict[str, tuple[PartitionValue, PartitionValue]]
    keys: list[str] = []
    """Columns copied unchanged, to identify the rows of predictions. A row with a missing value is quarantined."""
    max_quarantined: float = Field(default=0.01, ge=0, le=1)
    """The job fails when more than this share of the rows of a partition cannot be used."""
    unreadable_files: Literal["fail", "skip"] = "fail"
    weight: str | None = None
    """Column with the weight of each row."""
    negatives: NegativesConfig | None = None

    @model_validator(mode="after")
    def _splits(self) -> "LogsConfig":
        if "train" not in self.splits:
            raise ValueError("`splits` needs a `train` range: encoders are fitted on it")
        for name, (first, last) in self.splits.items():
            check_split(name)
            if type(first) is not type(last):
                raise ValueError(f"split `{name}` mixes a number and a text: [{first!r}, {last!r}]")
            if first > last:  # type: ignore[operator]
                raise ValueError(f"split `{name}` ends ({last}) before it begins ({first})")
        if len({type(bounds[0]) for bounds in self.splits.values()}) > 1:
            raise ValueError("some splits are numbers and some are texts: use one kind")
        if len(set(self.keys)) < len(self.keys):
            raise ValueError(f"`keys` names a column twice: {self.keys}")
        ranges = sorted(self.splits.items(), key=lambda item: item[1][0])
        for (one, (_, end)), (two, (start, _)) in zip(ranges, ranges[1:], strict=False):
            if end >= start:  # type: ignore[operator]
                raise ValueError(f"splits `{one}` and `{two}` overlap: a partition belongs to one split")
        return self

    def order(self, value: str) -> int | str:
        """The sort key of a partition's value: a number if the split bounds are numbers.

        Raises:
            UserError: the split bounds are numbers and the value is not.
        """
        if isinstance(next(iter(self.splits.values()))[0], str):
            return value
        if not re.fullmatch(r"-?(0|[1-9][0-9]*)", value):  # int() would also take 2024_0102 and 020240102
            raise UserError(
                f"logs.splits has whole numbers, but the log has a folder {self.partition}={value}. "
                "Write the split bounds as texts (in quotes), or move that folder away."
            )
        return int(value)

    def split_of(self, value: str) -> str | None:
        """The split that contains a partition, if any."""
        for split, (first, last) in self.splits.items():
            if first <= self.order(value) <= last:  # type: ignore[operator]
                return split
        return None


class ScenarioConfig(Section):
    """One level of the scenario tree: a column and its values, in the order of their indices."""

    name: str = Field(pattern=Name)
    column: str
    values: list[int | str] = Field(min_length=1)
    other: Literal["keep", "drop"] = "keep"
    """Rows with another value: kept together as one more scenario, or filtered out (and counted)."""

    @model_validator(mode="after")
    def _distinct(self) -> "ScenarioConfig":
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"two scenarios of this level would have the same name: {', '.join(self.labels)}")
        return self

    @property
    def labels(self) -> list[str]:
        """One printable label per scenario index, such as `tab=1`, and `tab=other` if other values are kept."""
        return [self.label_of(value) for value in [*self.values, *(["other"] if self.other == "keep" else [])]]

    def label_of(self, value: int | str) -> str:
        """The printable label of a value, or of `other`; it need not be in `labels`."""
        return f"{self.name}={value}"


class _Target(Section):
    name: str = Field(pattern=Name)
    column: str
    kind: TaskKind
    after: str | None = None
    """The task earlier in the causal order that this task depends on."""
    scale: float = Field(default=1.0, gt=0)
    transform: Literal["identity", "log1p"] = "identity"
    weight: float = Field(default=1.0, ge=0)
    missing: Literal["quarantine", "skip"] = "quarantine"
    """A row without a label: quarantined, or left to the other tasks."""
    only: dict[str, Annotated[list[int | str], Field(min_length=1)]] = {}
    """Scenario level -> the values for which the task exists. Rows of other scenarios have no label, whatever their
    column contains."""
    sample_weight: str | None = None
    """Column with the weight of each row for this task, in addition to `logs.weight`."""


class TaskConfig(LossConfig, _Target):
    """A target. A continuous one is trained as transform(column * scale).

    The keys of its loss come from `LossConfig`, the first base class, so that they come last in a dump of a task.
    """

    @property
    def loss_config(self) -> LossConfig:
        """The keys of the loss alone."""
        return LossConfig.model_validate({key: value for key, value in self if key in LossConfig.model_fields})

    @model_validator(mode="after")
    def _keys_fit_the_kind(self) -> "TaskConfig":
        if self.kind == "binary" and (self.scale != 1.0 or self.transform != "identity" or self.loss != "mse"):
            raise ValueError("`scale`, `transform` and `loss` belong to continuous tasks")
        if self.loss_facts.of_amounts and self.transform != "identity":
            raise ValueError(f"loss `{self.loss}` models the amount itself: remove `transform: {self.transform}`")
        return self

    @property
    def may_lack_labels(self) -> bool:
        """Whether kept rows may have no label of this task. Their label in the feature table is NaN."""
        return self.missing == "skip" or bool(self.only)

    def to_training_scale(self, values: NDArray[np.float64]) -> NDArray[np.float32]:
        """Labels on the training scale, transform(column * scale); not finite where float32 cannot hold a value."""
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            scaled = values * self.scale
            return (np.log1p(scaled) if self.transform == "log1p" else scaled).astype(np.float32)

    def to_log_unit(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """Converts labels or predictions from the training scale to the unit of the log's column.

        The inverse of `to_training_scale`. Probabilities are returned unchanged.
        """
        if self.kind == "binary":
            return values
        wide = values.astype(np.float64)
        return (np.expm1(wide) if self.transform == "log1p" else wide) / self.scale
