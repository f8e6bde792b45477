"""Features whose ids are looked up in an embedding table: their own table, or the table of another feature."""

from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipeline.errors import UserError
from pipeline.features.base import BaseFeature, EncodedColumn, ShardingType, TextCounts
from pipeline.features.column_use import ColumnTypes, Rows, id_lists
from pipeline.features.encoder_files import read_encoder
from pipeline.features.encoders import Encoder, HashEncoder, VocabularyEncoder
from pipeline.features.item_weights import looks_bracketed, looks_weighted
from pipeline.features.values import KIND_IN_WORDS, IdArray, Kind, Lists, as_texts
from pipeline.features.vocabulary import VocabularyConfig
from pipeline.section import Section, nearest

MOST_ITEMS = 2**31 - 1
"""Maximum number of items in a list column of one unit: offsets are int32."""

_SAMPLED_TEXTS = 10_000  # per unit: enough to recognise weights and brackets


class IdsConfig(Section):
    """Source of the ids: exactly one of a vocabulary and a number of hash buckets."""

    vocabulary: VocabularyConfig | None = None
    hash: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _exactly_one(self) -> "IdsConfig":
        if (self.vocabulary is None) == (self.hash is None):
            raise ValueError("give exactly one of `vocabulary: {...}` and `hash: BUCKETS`")
        return self


class EmbeddedFeature(BaseFeature):
    """A feature whose ids are looked up in its own table (`ids`, `dim`) or in that of the feature it `shares`."""

    ids: IdsConfig | None = None
    dim: int | None = Field(default=None, ge=1)
    shares: str | None = None
    sharding: ShardingType | None = None

    outside_table: ClassVar[frozenset[str]] = frozenset({"dim", "sharding"})

    @classmethod
    def complete_settings(cls, settings: dict[str, Any]) -> dict[str, Any]:
        return {**settings, "dim": 1} if settings.get("ids") else settings

    @model_validator(mode="after")
    def _own_or_shared(self) -> "EmbeddedFeature":
        own = [self.ids is not None, self.dim is not None]
        if self.shares is None and not all(own):
            raise ValueError("a feature needs `ids` and `dim` for its own table, or `shares` to name another feature")
        if self.shares is not None and (any(own) or self.sharding is not None):
            raise ValueError("`shares` uses the other feature's table: remove `ids`, `dim` and `sharding`")
        return self

    def check_references(self, path: str, features: Mapping[str, BaseFeature]) -> None:
        owners = [name for name, feature in features.items() if feature.may_be_shared]
        if self.shares is not None and self.shares not in owners:
            raise ValueError(
                f"{path}.shares: no feature with its own table is called {self.shares!r}; "
                + nearest(self.shares, owners)
            )

    def check_id_kinds(self, path: str, features: Mapping[str, BaseFeature], kinds: Mapping[str, Kind]) -> None:
        if self.shares is None:
            return
        owner = features[self.shares]
        if kinds[self.column] != kinds[owner.column]:
            raise UserError(
                f"{path}.shares: {self.name!r} has {KIND_IN_WORDS[kinds[self.column]]} in the column "
                f"{self.column!r}, but {owner.name!r}, whose table it shares, has {KIND_IN_WORDS[kinds[owner.column]]} "
                f"in {owner.column!r}. Convert one of them, or give {self.name!r} its own `ids` and `dim`."
            )

    @property
    def may_be_shared(self) -> bool:
        return self.shares is None

    @property
    def vocabulary(self) -> VocabularyConfig | None:
        return self.ids.vocabulary if self.ids is not None else None

    @property
    def encoder_name(self) -> str:
        return self.shares or self.name

    @property
    def encoder_kind(self) -> str:
        return "hash" if self.vocabulary is None else "vocabulary"

    def encoder_values(self, kinds: Mapping[str, Kind]) -> Kind | None:
        return kinds[self.column]

    def load_encoder(self, table: str, generation: int) -> Encoder:
        assert self.ids is not None, "a feature that shares a table does not own an encoder"
        if self.ids.hash is not None:
            return HashEncoder(self.ids.hash)
        return VocabularyEncoder(read_encoder(table, self.name, generation, ["value"])["value"].combine_chunks())

    @property
    def table_width(self) -> int | None:
        return self.dim

    @property
    def sharding_type(self) -> ShardingType | None:
        return self.sharding


class ListFeature(EmbeddedFeature):
    """A feature with a list of ids in each row."""

    separator: str | None = Field(default=None, min_length=1)

    @property
    def accepts(self) -> ColumnTypes:
        return id_lists(self.separator)

    def is_judged(self, fractional: Collection[str]) -> bool:
        return self.separator is not None

    def faults(self, rows: Rows) -> Iterable[tuple[NDArray[np.bool_], str]]:
        if rows.id_kind(self.column) == "int":
            column = rows.column(self.column)
            dropped = self.read(column.values, "int").dropped
            yield (dropped > 0)[column.rows], "a part of the text is not a whole number"

    def count_texts(self, rows: Rows) -> TextCounts | None:
        if rows.id_kind(self.column) != "text":
            return None
        values = rows.column(self.column).values.slice(0, _SAMPLED_TEXTS)
        parts = self.read(values, "text").items
        texts = as_texts(values).drop_null() if self.separator is not None else values.slice(0, 0)
        in_brackets = looks_bracketed(texts) if len(texts) else 0
        return TextCounts(len(parts), looks_weighted(parts), len(texts), in_brackets)

    def weights_advice(self, path: str) -> str:
        return "This kind of feature has no weights: write the ids alone into the log"

    @abstractmethod
    def read(self, values: pa.Array, kind: Kind) -> Lists:
        """The ids in values of the feature's column."""

    def seen_ids(self, rows: Rows, kept: NDArray[np.int64]) -> tuple[IdArray, NDArray[np.int64]]:
        column = rows.column(self.column)
        lists = self.read(column.values, rows.id_kind(self.column))
        return lists.items, np.repeat(column.counts(kept), lists.lengths)

    @property
    def column_type(self) -> pa.DataType:
        # Parquet's name for an item: a schema that is read back is then the same to the last byte.
        return pa.list_(pa.field("element", pa.int32()))

    def encode_rows(self, encoder: Encoder, rows: Rows, order: NDArray[np.int64]) -> EncodedColumn:
        column = rows.column(self.column)
        at = column.rows[order]
        lists = self.read(column.values, rows.id_kind(self.column))
        if max(lists.lengths.sum(), lists.lengths[at].sum()) > MOST_ITEMS:
            raise UserError(
                f"feature {self.name!r}: its lists have more than {MOST_ITEMS:,} items in one unit of rows. "
                "Write the log with smaller row groups, or make the lists shorter."
            )
        offsets = pa.array(np.append(0, np.cumsum(lists.lengths)).astype(np.int32))
        ids = pa.ListArray.from_arrays(offsets, pa.array(encoder.encode(lists.items)))
        ordered = ids.take(pa.array(at))
        dropped = int(lists.dropped[at].sum())
        encoded = EncodedColumn.of_ids(ordered, ordered.flatten().to_numpy(), missing=0, dropped=dropped)
        if lists.weights is None:
            return encoded
        with np.errstate(over="ignore"):  # in rows that are quarantined
            weights = pa.ListArray.from_arrays(offsets, pa.array(lists.weights.astype(np.float32)))
        return replace(encoded, weights=weights.take(pa.array(at)))
