"""The sections of the logs, of the scenarios and of the tasks."""

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from models.inputs import TaskKind
from models.loss_config import BINARY_KEYS, LossConfig
from pipeline import storage
from pipeline.config.partition_values import MixedKinds, PartitionOrder, PartitionValue, has_value, kinds_of, unescape
from pipeline.errors import UserError
from pipeline.section import Section
from pipeline.table_folder import check_name_part, check_split

Bound = PartitionValue | list[PartitionValue]
_BETWEEN_PARTS = r"[-: ]|(?<=[0-9])T(?=[0-9])"
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
    partition: str | list[str]
    """Name of the partition column, or of one column for each level of nested folders, such as year, month and day."""
    joins: list[JoinConfig] = []
    splits: dict[str, tuple[Bound, Bound]]
    keys: list[str] = []
    """Columns copied unchanged, to identify the rows of predictions. A row with a missing value is quarantined."""
    max_quarantined: float = Field(default=0.01, ge=0, le=1)
    """The job fails when more than this share of the rows of a partition cannot be used."""
    unreadable_files: Literal["fail", "skip"] = "fail"
    missing_columns: Literal["fail", "null"] = "fail"
    """What a column is in a file that lacks it, while other files have it: an error, or null in all of its rows."""
    weight: str | None = None
    """Column with the weight of each row."""
    negatives: NegativesConfig | None = None

    @field_validator("missing_columns", mode="before")
    @classmethod
    def _null_in_yaml(cls, value: object) -> object:
        return "null" if value is None else value

    @field_validator("partition")
    @classmethod
    def _partition(cls, partition: str | list[str]) -> str | list[str]:
        levels = [partition] if isinstance(partition, str) else partition
        if not levels or len(set(levels)) < len(levels):
            raise ValueError(f"{partition} must name at least one folder, and each only once")
        for level in levels:
            check_name_part(level)
        return partition

    @model_validator(mode="after")
    def _splits(self) -> "LogsConfig":
        if "train" not in self.splits:
            raise ValueError("`splits` needs a `train` range: encoders are fitted on it")
        for name in self.splits:
            check_split(name)
        if len(set(self.keys)) < len(self.keys):
            raise ValueError(f"`keys` names a column twice: {self.keys}")
        try:
            order = PartitionOrder(self._bounds(), [], is_whole_log=False)
        except MixedKinds as error:
            raise ValueError(f"the bounds of `splits` are of different kinds: {error}; write all of one kind") from None
        about_texts = f". {texts}" if (texts := order.describe_texts()) else ""
        for name, (first, last) in self.splits.items():
            if order.ranges[name].first > order.ranges[name].last:
                raise ValueError(f"split `{name}` ends ({last}) before it begins ({first}){about_texts}")
        ranges = sorted(order.ranges.items(), key=lambda item: item[1].first)
        for (one, before), (two, after) in zip(ranges, ranges[1:], strict=False):
            if before.last >= after.first:
                raise ValueError(f"splits `{one}` and `{two}` overlap: a partition belongs to one split{about_texts}")
        return self

    @property
    def levels(self) -> list[str]:
        """The names of the partition columns, from the outer folder to the inner folder."""
        return [self.partition] if isinstance(self.partition, str) else self.partition

    @property
    def folders_in_words(self) -> str:
        """How partition folders are named: `date=VALUE`, `year=VALUE/month=VALUE`."""
        return "/".join(f"{level}=VALUE" for level in self.levels)

    @property
    def partition_name(self) -> str:
        """The name of the partition column in the feature table: of nested folders, their names joined."""
        return "-".join(self.levels)

    def value_of(self, parts: Sequence[str]) -> str:
        """The value that identifies a partition, from the values of its folders as they are spelled there."""
        return parts[0] if len(parts) == 1 else "-".join(p.replace("%", "%25").replace("-", "%2D") for p in parts)

    def parts_of(self, value: str) -> list[str]:
        """The values of the folders of a partition; the inverse of `value_of`."""
        if len(self.levels) == 1:
            return [value]
        return [part.replace("%2D", "-").replace("%25", "%") for part in value.split("-")]

    def folder_of(self, value: str) -> str:
        """The folder of a partition, relative to the log."""
        parts = zip(self.levels, self.parts_of(value), strict=True)
        return "/".join(f"{level}={part}" for level, part in parts)

    def order(self, values: Iterable[str], is_whole_log: bool = False) -> PartitionOrder:
        """The order of partitions, and the split of each.

        Args:
            values: all partitions that will be compared.
            is_whole_log: whether they are all partitions of the log, of which it is not yet known that they have an
                order.

        Raises:
            UserError: their values and the bounds of the splits are of different kinds.
        """
        parts = [self.parts_of(value) for value in values]
        try:
            return PartitionOrder(self._bounds(), parts, is_whole_log)
        except MixedKinds as error:
            shown = error.shown(*(self._folder_with(parts, example) or repr(example) for example in error.examples))
            advice = self._advice(parts, error)
            raise UserError(
                f"logs.splits and the folders in {storage.absolute(self.path)}: {shown}. {advice}"
            ) from None

    def split_of(self, value: str) -> str | None:
        """The split that contains a partition, if any."""
        return self.order([value]).split_of(self.parts_of(value))

    def _advice(self, parts: list[list[str]], error: MixedKinds) -> str:
        """What to do about values that cannot be compared with the bounds."""
        ends = [part for part in parts if all(map(has_value, part))]
        for end in {tuple(kinds_of(unescape(value)) for value in part): part for part in reversed(ends)}.values():
            try:  # bounds like each kind of folder, since it is not known which of them are wanted
                PartitionOrder({"": (end, end)}, parts)
            except MixedKinds as among_folders:
                odd = self._folder_with(parts, error.examples[1]) or self._folder_with(parts, among_folders.examples[1])
                return f"Rename the folder {odd}, or move it out of the log."
        like = "/".join(ends[0])  # as they are spelled, which a bound may be too
        return f"Write the bounds of all splits like the folders, in quotes, such as '{like}'."

    def _folder_with(self, parts: list[list[str]], example: str) -> str | None:
        """The first partition folder of which one value is the example."""
        found = (self.folder_of(self.value_of(part)) for part in parts if example in map(unescape, part))
        return next(found, None)

    def _bounds(self) -> dict[str, tuple[list[PartitionValue], list[PartitionValue]]]:
        """The bounds of each split as one value per level.

        Raises:
            ValueError: a bound has another number of values than there are levels.
        """
        return {name: (self._levels_of(first), self._levels_of(last)) for name, (first, last) in self.splits.items()}

    def _levels_of(self, bound: Bound) -> list[PartitionValue]:
        levels = self.levels
        if isinstance(bound, list):
            parts = bound
        elif len(levels) == 1 or isinstance(bound, int):
            parts = [bound]
        else:
            parts = list(re.split("/" if "/" in bound else _BETWEEN_PARTS, bound))
        if len(parts) != len(levels):
            raise ValueError(
                f"the bound {bound!r} of `splits` has {len(parts)} parts, but `partition` names {len(levels)} folders "
                f"({', '.join(levels)}): write a value for each, as a list or with / between them"
            )
        return parts


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


class QuantilesWithinConfig(Section):
    """Groups of equally many rows of the train split, by a column such as the duration of a video."""

    column: str
    groups: int = Field(default=30, ge=1, le=1000)


class _Target(Section):
    name: str = Field(pattern=Name)
    column: str
    kind: TaskKind
    after: str | None = None
    """The task earlier in the causal order that this task depends on."""
    scale: float = Field(default=1.0, gt=0)
    transform: Literal["identity", "log1p"] = "identity"
    max: float | None = Field(default=None, allow_inf_nan=False)
    """Largest label, in the unit of the log's column: larger labels are clipped to it, and counted. With `relative_to`
    it is the largest ratio."""
    relative_to: str | None = None
    """Column by which the label is divided, such as the duration of a video. Predictions are multiplied by it."""
    quantiles_within: QuantilesWithinConfig | None = None
    """The target is the quantile of the label within the row's group. Predictions have the unit of the label."""
    weight: float = Field(default=1.0, ge=0)
    missing: Literal["quarantine", "skip"] = "quarantine"
    """A row without a label: quarantined, or left to the other tasks."""
    only: dict[str, Annotated[list[int | str], Field(min_length=1)]] = {}
    """Scenario level -> the values for which the task exists. Rows of other scenarios have no label, whatever their
    column contains."""
    prediction: Literal["mean", "median"] = "mean"
    """What predictions in the log's unit are, if the target is transformed."""
    sample_weight: str | None = None
    """Column with the weight of each row for this task, in addition to `logs.weight`."""


class TaskConfig(LossConfig, _Target):
    """A target. A continuous one is trained as transform(min(column, max) * scale), or, relative to another column, as
    transform(min(column / relative_to, max) * scale), or as the quantile of min(column, max) within a group of rows.

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
        if self.max is not None and self.max <= 0 and (self.loss_facts.of_amounts or self.transform == "log1p"):
            raise ValueError(f"`max` is {self.max:g}, so that no label could be above 0: use a number above 0")
        if self.loss_facts.of_amounts and self.transform != "identity":
            raise ValueError(f"loss `{self.loss}` models the amount itself: remove `transform: {self.transform}`")
        if self.loss_facts.of_logarithms and self.transform != "log1p" and self.quantiles_within is None:
            raise ValueError(f"loss `{self.loss}` models a logarithm: add `transform: log1p`")
        if self.prediction == "median" and self.transform != "log1p" and self.quantiles_within is None:
            raise ValueError(
                "`prediction: median` belongs to continuous tasks with `transform: log1p` or `quantiles_within`"
            )
        return self

    @model_validator(mode="after")
    def _keys_of_one_kind(self) -> "TaskConfig":
        keys_of = {"binary": BINARY_KEYS, "continuous": ("max", "relative_to", "quantiles_within")}
        for kind, keys in keys_of.items():
            for key, value in self if kind != self.kind else ():
                if key in keys and value != TaskConfig.model_fields[key].default:
                    raise ValueError(f"`{key}` belongs to {kind} tasks, and {self.name!r} is {self.kind}: remove it")
        return self

    @model_validator(mode="after")
    def _reference_fits(self) -> "TaskConfig":
        quantiles = self.quantiles_within
        if self.reference == self.column:
            raise ValueError(f"`{self.reference_key}` is the task's own column {self.column!r}: use another column")
        if quantiles is not None and self.relative_to is not None:
            raise ValueError("`relative_to` and `quantiles_within` are two ways to use a duration: remove one of them")
        if quantiles is not None and (self.scale != 1.0 or self.transform != "identity"):
            raise ValueError("`quantiles_within` makes targets from 0 to 1: remove `scale` and `transform`")
        modelled = "amounts" if self.loss_facts.of_amounts else "logarithms" if self.loss_facts.of_logarithms else None
        if quantiles is not None and modelled is not None:
            raise ValueError(
                f"loss `{self.loss}` models {modelled}, and `quantiles_within` makes quantiles: use another"
            )
        return self

    @property
    def reference(self) -> str | None:
        """The column that the target depends on, and that must be known to convert a prediction to the log's unit."""
        return self.relative_to if self.quantiles_within is None else self.quantiles_within.column

    @property
    def reference_key(self) -> str:
        """The key that names it."""
        return "relative_to" if self.quantiles_within is None else "quantiles_within.column"

    @property
    def may_lack_labels(self) -> bool:
        """Whether kept rows may have no label of this task. Their label in the feature table is NaN."""
        return self.missing == "skip" or bool(self.only)

    def to_training_scale(self, values: NDArray[np.float64]) -> NDArray[np.float32]:
        """Labels, or their ratios to `relative_to`, on the training scale; not finite where float32 cannot hold a
        value. With `quantiles_within`: the labels whose quantiles are the target.
        """
        clipped = values if self.max is None else np.minimum(values, self.max)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            scaled = clipped * self.scale
            return (np.log1p(scaled) if self.transform == "log1p" else scaled).astype(np.float32)

    @property
    def is_rescaled(self) -> bool:
        """Whether labels on the training scale have another unit than the log's column."""
        return self.scale != 1.0 or self.transform != "identity" or self.reference is not None

    def to_log_unit(
        self, values: NDArray[np.floating], added: NDArray[np.float64] | float = 0.0
    ) -> NDArray[np.floating]:
        """Converts values from the training scale to the unit of the log's column, or to their ratios to `relative_to`.

        The inverse of `to_training_scale`. Probabilities are returned unchanged. A value that float64 cannot hold
        becomes infinite.

        Args:
            values: labels or predictions.
            added: to logarithms, before they are inverted: for means, see pipeline/evaluation/log_unit.py.
        """
        if self.kind == "binary":
            return values
        with np.errstate(over="ignore"):
            wide = values.astype(np.float64)
            return (np.expm1(wide + added) if self.transform == "log1p" else wide) / self.scale
