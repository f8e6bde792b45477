"""Sequence: a behaviour, oldest item first."""

from typing import Literal

import pyarrow as pa
from pydantic import Field

from models.inputs import Feature
from pipeline.features.column_use import ID_LISTS, ColumnTypes
from pipeline.features.embedded import ListFeature
from pipeline.features.values import Kind, Lists, as_lists


class SequenceFeature(ListFeature):
    """A behaviour: ids of a list column, oldest first; the last `max_length` are kept."""

    kind: Literal["sequence"]
    max_length: int = Field(ge=1)

    @property
    def accepts(self) -> ColumnTypes:
        return ID_LISTS

    def read(self, values: pa.Array, kind: Kind) -> Lists:
        return as_lists(values, kind, None).last(self.max_length)  # nulls are left out first

    @property
    def model_feature(self) -> Feature:
        return Feature(self.name, self.encoder_name, "sequence", max_length=self.max_length)
