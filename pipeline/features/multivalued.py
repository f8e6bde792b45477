"""Multivalued: any number of ids per row, pooled."""

from collections.abc import Iterable
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from models.inputs import Feature
from pipeline.features.base import TextCounts
from pipeline.features.column_use import Rows
from pipeline.features.embedded import EmbeddedFeature, ListFeature
from pipeline.features.item_weights import split_weights, weight_faults
from pipeline.features.values import Kind, Lists, as_lists, with_whole_numbers


class MultivaluedFeature(ListFeature):
    """Any number of ids per row, pooled. A list column, or a string split at `separator`; `weights`: `id:weight`."""

    kind: Literal["multivalued"]
    weights: str | None = Field(default=None, min_length=1)
    pooling: Literal["mean", "sum"] = "mean"

    outside_table: ClassVar[frozenset[str]] = EmbeddedFeature.outside_table | {"pooling"}
    later_keys: ClassVar[tuple[str, ...]] = ("weights",)

    @model_validator(mode="after")
    def _weights_in_parts(self) -> "MultivaluedFeature":
        if self.weights is None:
            return self
        if self.separator is None:
            raise ValueError(
                f"`weights: {self.weights!r}` splits the parts of a text into ids and weights, and there is no "
                "`separator` that splits the text into parts: set `separator`, or remove `weights`"
            )
        if self.separator in self.weights:
            raise ValueError(
                f"`weights: {self.weights!r}` contains the `separator` {self.separator!r}, so no part would have a "
                "weight: set `weights` to the text between an id and its weight, such as ':'"
            )
        return self

    def read(self, values: pa.Array, kind: Kind) -> Lists:
        if self.weights is None:
            return as_lists(values, kind, self.separator)
        lists = split_weights(as_lists(values, "text", self.separator), self.weights)
        return lists if kind == "text" else with_whole_numbers(lists)

    @property
    def has_weights(self) -> bool:
        return self.weights is not None

    def faults(self, rows: Rows) -> Iterable[tuple[NDArray[np.bool_], str]]:
        yield from super().faults(rows)
        if self.has_weights:
            column = rows.column(self.column)
            for wrong, reason in weight_faults(self.read(column.values, "text")):
                yield wrong[column.rows], reason

    def count_texts(self, rows: Rows) -> TextCounts | None:
        return None if self.has_weights else super().count_texts(rows)

    def weights_advice(self, path: str) -> str:
        again = f"Set {path}.weights to ':' and rebuild the table with --overwrite"
        return again if self.separator is not None else f"Write each list as one text with a `separator`. {again}"

    @property
    def model_feature(self) -> Feature:
        return Feature(self.name, self.encoder_name, "multivalued", pooling=self.pooling, is_weighted=self.has_weights)
