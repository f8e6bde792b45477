"""What the stages ask of a feature, whatever its kind.

A kind is one class: its keys in the experiment file, and all that follows from them. The methods are in the order in
which a run comes to them: the logs, the first pass, the second pass, the model.
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
    """A column of lane files, with what is counted of it for the manifest."""

    values: pa.Array
    ids: int  # values in all, those that are missing included
    missing: int  # nulls: of single values, or those dropped from lists
    unknown: int | None  # ids outside the vocabulary; None for numbers, which have none

    @classmethod
    def of_ids(cls, values: pa.Array, ids: NDArray[Any], missing: int, dropped: int = 0) -> "EncodedColumn":
        """A column of ids or of lists of ids.

        Args:
            ids: all that are in the column.
            missing: nulls that have an id in it.
            dropped: nulls that have none.
        """
        return cls(values, len(ids) + dropped, missing + dropped, int(np.count_nonzero(ids == UNKNOWN_ID)))


class BaseFeature(Section):
    """A feature of any kind. The defaults are those of a feature that is not fitted and shares nothing."""

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    column: str

    outside_table: ClassVar[frozenset[str]] = frozenset()
    """Keys that decide nothing in the feature table: they may change while a table lives."""

    @classmethod
    def complete_settings(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Its keys as a table's settings have them, with any value for each required key of `outside_table`."""
        return settings

    # The logs and the other features

    @property
    @abstractmethod
    def accepts(self) -> ColumnTypes:
        """Types that its column may have."""

    def uses(self, path: str) -> list[Use]:
        """Every column that it reads.

        Args:
            path: of the feature in the experiment file.
        """
        return [Use(self.column, f"feature {self.name!r} ({path}.column)", self.accepts)]

    @property
    def columns(self) -> list[str]:
        """Names of the columns that it reads."""
        return [use.column for use in self.uses("")]

    def check_references(self, path: str, features: Mapping[str, "BaseFeature"]) -> None:
        """Checks what it says of other features, by name.

        Raises:
            ValueError: a reference does not hold.
        """
        return

    def check_id_kinds(self, path: str, features: Mapping[str, "BaseFeature"], kinds: Mapping[str, Kind]) -> None:
        """Checks the ids in its columns against those of other features.

        Args:
            kinds: what the ids in each column are made of.

        Raises:
            UserError: they do not fit together.
        """
        return

    # The first pass: which rows can be used, and what is counted of them

    def is_judged(self, fractional: Collection[str]) -> bool:
        """Whether rows can be unfit because of this feature.

        Args:
            fractional: columns of ids that are floats somewhere.
        """
        return False

    def faults(self, rows: Rows) -> Iterable[tuple[NDArray[np.bool_], str]]:
        """Which rows cannot be used, and why; asked only where `is_judged`."""
        return ()

    @property
    def vocabulary(self) -> VocabularyConfig | None:
        """Of an encoder of its own that is a vocabulary, else None."""
        return None

    def seen_ids(self, rows: Rows, kept: NDArray[np.int64]) -> tuple[IdArray, NDArray[np.int64]]:
        """Values for the vocabulary in some rows, and how often each is seen; asked only where its encoder is one."""
        raise NotImplementedError(f"features of kind {type(self).__name__} have no vocabulary")

    @property
    def summary(self) -> Summary | None:
        """How an encoder of its own is fitted to numbers, else None."""
        return None

    def seen_numbers(self, rows: Rows, kept: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Numbers for the summary in some rows, and how often each is seen; asked only where there is a summary."""
        raise NotImplementedError(f"features of kind {type(self).__name__} have no summary")

    # The encoder

    @property
    def encoder_name(self) -> str:
        """Name of the encoder that it is encoded by: its own name, or that of the feature that owns it."""
        return self.name

    @property
    @abstractmethod
    def encoder_kind(self) -> str:
        """What kind of encoder its own is, for encoders.json."""

    def encoder_values(self, kinds: Mapping[str, Kind]) -> Kind | None:
        """What the ids that its own encoder takes are made of; None where it takes numbers."""
        return None

    @abstractmethod
    def load_encoder(self, table: str, generation: int) -> Encoder:
        """Its own encoder from the files of a feature table.

        Args:
            generation: of the vocabularies.
        """

    # The second pass

    @property
    @abstractmethod
    def column_type(self) -> pa.DataType:
        """Of its column in lane files, which has no nulls."""

    @abstractmethod
    def encode_rows(self, encoder: Encoder, rows: Rows, order: NDArray[np.int64]) -> EncodedColumn:
        """Its column of lane files for some rows, in the order given.

        Raises:
            UserError: the rows do not fit into one column.
        """

    # The model

    @property
    def table_width(self) -> int | None:
        """Width of the embedding table that it owns; None where it owns none."""
        return None

    def embedding_table(self, rows: Mapping[str, int]) -> EmbeddingTable | None:
        """The embedding table that it owns.

        Args:
            rows: of each table.
        """
        return None if self.table_width is None else EmbeddingTable(self.name, rows[self.name], self.table_width)

    @property
    def sharding_type(self) -> ShardingType | None:
        """How the embedding table that it owns is to be cut; None: as the planner likes."""
        return None

    @property
    def model_feature(self) -> Feature | None:
        """The embedded feature of the model; None where it enters the model as one number."""
        return None

    @property
    def is_single_id(self) -> bool:
        """Whether it is one id out of a column of ids, such as an item that behaviours can be compared with."""
        return False

    @property
    def may_be_shared(self) -> bool:
        """Whether other features may take its embedding table with `shares`."""
        return False
