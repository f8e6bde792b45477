"""Categorical: one id per row."""

from collections.abc import Collection, Iterable
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models.inputs import Feature
from pipeline.features.base import EncodedColumn
from pipeline.features.column_use import IDS, ColumnTypes, Rows
from pipeline.features.embedded import EmbeddedFeature
from pipeline.features.encoders import MISSING_ID, Encoder
from pipeline.features.values import INDISTINCT, IdArray, as_ids, indistinct


class CategoricalFeature(EmbeddedFeature):
    """One id per row. Integers, strings, bytes, booleans, or floats that are whole numbers."""

    kind: Literal["categorical"]

    @property
    def accepts(self) -> ColumnTypes:
        return IDS

    def is_judged(self, fractional: Collection[str]) -> bool:
        return self.column in fractional

    def faults(self, rows: Rows) -> Iterable[tuple[NDArray[np.bool_], str]]:
        column = rows.column(self.column)
        yield indistinct(column.values)[column.rows], INDISTINCT
        _, not_whole = as_ids(column.values, rows.id_kind(self.column))
        yield not_whole[column.rows], "value is not a whole number"

    def seen_ids(self, rows: Rows, kept: NDArray[np.int64]) -> tuple[IdArray, NDArray[np.int64]]:
        column = rows.column(self.column)
        return as_ids(column.values, rows.id_kind(self.column))[0], column.counts(kept)

    @property
    def column_type(self) -> pa.DataType:
        return pa.int32()

    def encode_rows(self, encoder: Encoder, rows: Rows, order: NDArray[np.int64]) -> EncodedColumn:
        column = rows.column(self.column)
        values, _ = as_ids(column.values, rows.id_kind(self.column))
        ids = encoder.encode(values)[column.rows[order]]
        return EncodedColumn.of_ids(pa.array(ids), ids, missing=int(np.count_nonzero(ids == MISSING_ID)))

    @property
    def model_feature(self) -> Feature:
        return Feature(self.name, self.encoder_name, "categorical")

    @property
    def is_single_id(self) -> bool:
        return True
