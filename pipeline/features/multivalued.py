"""Multivalued: any number of ids per row, pooled."""

from dataclasses import replace
from typing import ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from models.inputs import Feature
from pipeline.features.column_use import ID_LISTS, SEPARATED_TEXTS, ColumnTypes
from pipeline.features.embedded import EmbeddedFeature, ListFeature
from pipeline.features.values import Kind, Lists, as_lists


class MultivaluedFeature(ListFeature):
    """Any number of ids per row, pooled. A list column, or a string split at `separator`."""

    kind: Literal["multivalued"]
    separator: str | None = Field(default=None, min_length=1)
    pooling: Literal["mean", "sum"] = "mean"

    outside_table: ClassVar[frozenset[str]] = EmbeddedFeature.outside_table | {"pooling"}

    @property
    def accepts(self) -> ColumnTypes:
        if self.separator is not None:
            return SEPARATED_TEXTS
        return replace(ID_LISTS, expected=f"{ID_LISTS.expected}, or text with a `separator`")

    def read(self, values: pa.Array, kind: Kind) -> Lists:
        return as_lists(values, kind, self.separator)

    @property
    def model_feature(self) -> Feature:
        return Feature(self.name, self.encoder_name, "multivalued", pooling=self.pooling)
