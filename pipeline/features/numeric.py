"""Numeric: a number, as the embedding of its quantile bucket or standardised."""

from collections.abc import Collection, Iterable
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from models.inputs import Feature
from pipeline.features.base import BaseFeature, EncodedColumn
from pipeline.features.column_use import NUMBERS, ColumnTypes, Rows
from pipeline.features.encoder_files import read_encoder
from pipeline.features.encoders import Encoder, QuantileEncoder, StandardizeEncoder, transformed
from pipeline.features.sketch import MomentsSummary, QuantileSummary, Summary
from pipeline.features.values import as_numbers
from pipeline.section import Section


class EncodeConfig(Section):
    """How a number enters the model: as the embedding of its quantile bucket, or as its standardised value."""

    quantiles: int | None = Field(default=None, ge=2)
    standardize: Literal["identity", "log1p"] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "EncodeConfig":
        if (self.quantiles is None) == (self.standardize is None):
            raise ValueError("give exactly one of `quantiles: BUCKETS` and `standardize: identity | log1p`")
        return self


class NumericFeature(BaseFeature):
    """A number. With quantiles it is an embedding of `dim`; standardised it enters as one value."""

    kind: Literal["numeric"]
    encode: EncodeConfig
    dim: int | None = Field(default=None, ge=1)

    outside_table: ClassVar[frozenset[str]] = frozenset({"dim"})

    @classmethod
    def complete_settings(cls, settings: dict[str, Any]) -> dict[str, Any]:
        return {**settings, "dim": 1} if (settings.get("encode") or {}).get("quantiles") else settings

    @model_validator(mode="after")
    def _dim_with_quantiles(self) -> "NumericFeature":
        if (self.encode.quantiles is None) != (self.dim is None):
            raise ValueError("`dim` is required with `quantiles` and not allowed without it")
        return self

    @property
    def accepts(self) -> ColumnTypes:
        return NUMBERS

    def is_judged(self, fractional: Collection[str]) -> bool:
        return True

    def faults(self, rows: Rows) -> Iterable[tuple[NDArray[np.bool_], str]]:
        column = rows.column(self.column)
        numbers = as_numbers(column.values)
        yield np.isinf(numbers)[column.rows], "value is infinite"
        if self.encode.standardize == "log1p":
            yield (numbers <= -1)[column.rows], "value is -1 or less, outside log1p"
        if self.encode.standardize == "identity":
            # The square of a larger number may overflow float64: the deviation would be infinite, and every value 0.
            yield (np.abs(numbers) > np.finfo(np.float32).max)[column.rows], "value is too large for float32"

    @property
    def summary(self) -> Summary:
        return MomentsSummary() if self.encode.quantiles is None else QuantileSummary(self.encode.quantiles)

    def seen_numbers(self, rows: Rows, kept: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        column = rows.column(self.column)
        numbers = transformed(as_numbers(column.values), self.encode.standardize == "log1p")
        return numbers, np.where(np.isnan(numbers), 0, column.counts(kept))

    @property
    def encoder_kind(self) -> str:
        return "standardize" if self.encode.quantiles is None else "quantiles"

    def load_encoder(self, table: str, generation: int) -> Encoder:
        state = read_encoder(table, self.name)
        if self.encode.quantiles is not None:
            return QuantileEncoder(state["edge"].to_numpy(), self.encode.quantiles)
        mean, deviation = state["mean"][0].as_py(), state["deviation"][0].as_py()
        return StandardizeEncoder(mean, deviation, self.encode.standardize == "log1p")

    @property
    def column_type(self) -> pa.DataType:
        return pa.float32() if self.encode.quantiles is None else pa.int32()

    def encode_rows(self, encoder: Encoder, rows: Rows, order: NDArray[np.int64]) -> EncodedColumn:
        column = rows.column(self.column)
        at = column.rows[order]
        missing = np.isnan(as_numbers(column.values))[at]
        values = pa.array(encoder.encode(column.values)[at])
        return EncodedColumn(values, ids=len(at), missing=int(np.count_nonzero(missing)), unknown=None)

    @property
    def table_width(self) -> int | None:
        return self.dim

    @property
    def model_feature(self) -> Feature | None:
        return None if self.encode.quantiles is None else Feature(self.name, self.name, "categorical")
