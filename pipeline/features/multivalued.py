"""Multivalued: any number of ids per row, pooled."""

from typing import ClassVar, Literal

import pyarrow as pa

from models.inputs import Feature
from pipeline.features.embedded import EmbeddedFeature, ListFeature
from pipeline.features.values import Kind, Lists, as_lists


class MultivaluedFeature(ListFeature):
    """Any number of ids per row, pooled. A list column, or a string split at `separator`."""

    kind: Literal["multivalued"]
    pooling: Literal["mean", "sum"] = "mean"

    outside_table: ClassVar[frozenset[str]] = EmbeddedFeature.outside_table | {"pooling"}

    def read(self, values: pa.Array, kind: Kind) -> Lists:
        return as_lists(values, kind, self.separator)

    @property
    def model_feature(self) -> Feature:
        return Feature(self.name, self.encoder_name, "multivalued", pooling=self.pooling)
