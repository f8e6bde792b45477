"""The interface between features of all kinds and the stages.

A kind is one class: its keys in the experiment file, and everything that follows from them. The methods are in the
order in which a run uses them: the logs, the first pass, the second pass, the model.
"""

from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from models.inputs import EmbeddingTable, Feature
from pipeline.features.column_use import ColumnTypes, Rows, Use
from pipeline.features.encoders import UNKNOWN_ID, Encoder
from pipeline.features.sketch import Summary
from pipeline.features.values import IdArray, Kind
from pipeline.features.vocabulary import VocabularyConfig
from pipeline.section import Section

ShardingType = Literal["table_wise", "column_wise", "row_wise", "table_row_wise", "grid_shard"]


@dataclass(frozen=True)
class EncodedColumn:
    """A column of lane files, with its counts for the manifest."""

    values: pa.Array
    ids: int  # all values, including missing ones
    missing: int  # nulls: single values that are null, or nulls dropped from lists
    unknown: int | None  # ids outside the vocabulary; None for numbers, which have no vocabulary
    weights: pa.Array | None = None  # of the ids in lists: a second column, only if the feature `has_weights`

    @classmethod
    def of_ids(cls, values: pa.Array, ids: NDArray[Any], missing: int, dropped: int = 0) -> "EncodedColumn":
        """A column of ids or of lists of ids.

        Args:
            ids: all ids in the column.
            missing: nulls that have an id in the column.
            dropped: nulls that have no id in the column.
        """
        return cls(values, len(ids) + dropped, missing + dropped, int(np.count_nonzero(ids == UNKNOWN_ID)))


@dataclass(frozen=True)
class TextCounts:
    """Texts and ids of a list feature, and how many of them are probably not meant as they are read."""

    parts: int = 0  # ids
    weighted: int = 0  # ids that look like `id:weight`
    texts: int = 0  # that are split at a separator
    in_brackets: int = 0  # such texts that are lists in brackets


class BaseFeature(Section):
    """A feature of any kind. The defaults fit a feature that needs no fitting and shares nothing."""

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    column: str

    outside_table: ClassVar[frozenset[str]] = frozenset()
    """Keys that do not affect the feature table: they may change while a table is in use."""
    later_keys: ClassVar[tuple[str, ...]] = ()
    """Keys that the first tables did not have: the settings of a new table contain them only if they are used."""

    @classmethod
    def complete_settings(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """The feature's keys from a table's settings, with some value for each required key of `outside_table`."""
        return settings

    # The logs and the other features

    @property
    @abstractmethod
    def accepts(self) -> ColumnTypes:
        """Types that the feature's column may have."""

    def uses(self, path: str) -> list[Use]:
        """Every column that the feature reads.

        Args:
            path: path of the feature in the experiment file.
        """
        return [Use(self.column, f"feature {self.name!r} ({path}.column)", self.accepts)]

    @property
    def columns(self) -> list[str]:
        """Names of the columns that the feature reads."""
        return [use.column for use in self.uses("")]

    def check_references(self, path: str, features: Mapping[str, "BaseFeature"]) -> None:
        """Checks the feature's references to other features, by name.

        Raises:
            ValueError: a reference is invalid.
        """
        return

    def check_id_kinds(self, path: str, features: Mapping[str, "BaseFeature"], kinds: Mapping[str, Kind]) -> None:
        """Checks that the ids in the feature's columns fit those of other features.

        Args:
            kinds: kind of the ids in each column.

        Raises:
            UserError: the ids do not fit together.
        """
        return

    # The first pass: which rows can be used, and what is counted in them

    def is_judged(self, fractional: Collection[str]) -> bool:
        """Whether this feature can make rows unusable.

        Args:
            fractional: columns of ids that are floats in at least one file.
        """
        return False

    def faults(self, rows: Rows) -> Iterable[tuple[NDArray[np.bool_], str]]:
        """Which rows cannot be used, and why; called only if `is_judged`."""
        return ()

    @property
    def vocabulary(self) -> VocabularyConfig | None:
        """Settings of the feature's own vocabulary; None if it has none."""
        return None

    def seen_ids(self, rows: Rows, kept: NDArray[np.int64]) -> tuple[IdArray, NDArray[np.int64]]:
        """Values for the vocabulary in some rows, and how often each occurs; called only if there is a vocabulary."""
        raise AssertionError(f"features of kind {type(self).__name__} have no vocabulary")

    @property
    def summary(self) -> Summary | None:
        """How the feature's own encoder is fitted to numbers; None if it is not."""
        return None

    def seen_numbers(self, rows: Rows, kept: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Numbers for the summary in some rows, and how often each occurs; called only if there is a summary."""
        raise AssertionError(f"features of kind {type(self).__name__} have no summary")

    def count_texts(self, rows: Rows) -> TextCounts | None:
        """What ids in lists look like, in some rows; None if the feature is no list of texts without weights."""
        return None

    def weights_advice(self, path: str) -> str:
        """What to do if the texts of its lists look like `id:weight`; `path` is its path in the experiment file."""
        raise AssertionError(f"features of kind {type(self).__name__} have no lists")

    # The encoder

    @property
    def encoder_name(self) -> str:
        """Name of the feature's encoder: the name of this feature, or of the feature that owns the encoder."""
        return self.name

    @property
    @abstractmethod
    def encoder_kind(self) -> str:
        """Kind of the feature's own encoder, for encoders.json."""

    def encoder_values(self, kinds: Mapping[str, Kind]) -> Kind | None:
        """Kind of the ids that the feature's own encoder takes; None if it takes numbers."""
        return None

    @abstractmethod
    def load_encoder(self, table: str, generation: int) -> Encoder:
        """Loads the feature's own encoder from the files of a feature table.

        Args:
            generation: generation of the vocabularies.
        """

    # The second pass

    @property
    @abstractmethod
    def column_type(self) -> pa.DataType:
        """Type of the feature's column in lane files, which has no nulls."""

    @property
    def has_weights(self) -> bool:
        """Whether the ids in lists have weights, which are a second column of lane files."""
        return False

    @abstractmethod
    def encode_rows(self, encoder: Encoder, rows: Rows, order: NDArray[np.int64]) -> EncodedColumn:
        """The feature's column of lane files for some rows, in the given order.

        Raises:
            UserError: the rows do not fit into one column.
        """

    # The model

    @property
    def table_width(self) -> int | None:
        """Width of the embedding table that the feature owns; None if it owns no table."""
        return None

    def embedding_table(self, rows: Mapping[str, int]) -> EmbeddingTable | None:
        """The embedding table that the feature owns.

        Args:
            rows: number of rows of each table.
        """
        return None if self.table_width is None else EmbeddingTable(self.name, rows[self.name], self.table_width)

    @property
    def sharding_type(self) -> ShardingType | None:
        """How to shard the embedding table that the feature owns; None: the planner decides."""
        return None

    @property
    def model_feature(self) -> Feature | None:
        """The embedded feature of the model; None if the feature enters the model as one number."""
        return None

    @property
    def is_single_id(self) -> bool:
        """Whether the feature is one id per row, such as an item that behaviours can be compared with."""
        return False

    @property
    def may_be_shared(self) -> bool:
        """Whether other features may use its embedding table with `shares`."""
        return False
