"""The logs, the scenarios that they come from and the tasks that they label."""

from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.base import Section

PartitionValue = int | str
Name = r"^[A-Za-z_][A-Za-z0-9_]*$"


class Join(Section):
    """A small side table, one row a key, whose columns are added to every log row with that key."""

    path: str
    key: str


class Logs(Section):
    """Hive-partitioned Parquet: where it lies, how it is split, what is done with what cannot be used."""

    path: str
    partition: str
    joins: list[Join] = []
    splits: dict[str, tuple[PartitionValue, PartitionValue]]
    keys: list[str] = []
    """Columns carried along unchanged, to name the rows of predictions. A row without one is quarantined."""
    max_quarantined: float = Field(default=0.01, ge=0, le=1)
    """The job fails when more than this share of the rows of a partition cannot be used."""
    unreadable_files: Literal["fail", "skip"] = "fail"

    @model_validator(mode="after")
    def _splits(self) -> "Logs":
        if "train" not in self.splits:
            raise ValueError("`splits` needs a `train` range: encoders are fitted on it")
        ranges = sorted(self.splits.items(), key=lambda item: str(item[1][0]))
        for name, (first, last) in ranges:
            if type(first) is not type(last):
                raise ValueError(f"split `{name}` mixes a number and a text: [{first!r}, {last!r}]")
            if first > last:  # type: ignore[operator]
                raise ValueError(f"split `{name}` ends ({last}) before it begins ({first})")
        if len({type(bounds[0]) for bounds in self.splits.values()}) > 1:
            raise ValueError("some splits are numbers and some are texts: use one kind")
        for (one, (_, end)), (two, (start, _)) in zip(ranges, ranges[1:], strict=False):
            if end >= start:  # type: ignore[operator]
                raise ValueError(f"splits `{one}` and `{two}` overlap: a partition belongs to one split")
        return self


class Scenario(Section):
    """One level of the scenario tree: a column and its values, in the order of their indices."""

    name: str = Field(pattern=Name)
    column: str
    values: list[int | str] = Field(min_length=1)
    other: Literal["keep", "drop"] = "keep"
    """Rows with another value: kept together as one more scenario, or filtered out (and counted)."""

    @property
    def labels(self) -> list[str]:
        """One printable label a scenario index, such as `tab=1`, and `tab=other` where others are kept."""
        return [f"{self.name}={v}" for v in self.values] + ([f"{self.name}=other"] if self.other == "keep" else [])


class Task(Section):
    """A target. A continuous one is trained as transform(column * scale)."""

    name: str = Field(pattern=Name)
    column: str
    kind: Literal["binary", "continuous"]
    after: str | None = None
    """The task in the causal order that this one depends on."""
    scale: float = Field(default=1.0, gt=0)
    transform: Literal["identity", "log1p"] = "identity"
    weight: float = Field(default=1.0, ge=0)

    @model_validator(mode="after")
    def _binary_is_plain(self) -> "Task":
        if self.kind == "binary" and (self.scale != 1.0 or self.transform != "identity"):
            raise ValueError("`scale` and `transform` belong to continuous tasks")
        return self
