"""Sequence: a behaviour, oldest item first."""

from typing import ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from models.inputs import Feature
from pipeline.features.embedded import ListFeature
from pipeline.features.values import Kind, Lists, as_lists


class SequenceFeature(ListFeature):
    """A behaviour, oldest id first: a list column, or a string split at `separator`. The last `max_length` are kept."""

    kind: Literal["sequence"]
    max_length: int = Field(ge=1)

    later_keys: ClassVar[tuple[str, ...]] = ("separator",)

    def read(self, values: pa.Array, kind: Kind) -> Lists:
        return as_lists(values, kind, self.separator).last(self.max_length)  # nulls are left out first

    @property
    def model_feature(self) -> Feature:
        return Feature(self.name, self.encoder_name, "sequence", max_length=self.max_length)
