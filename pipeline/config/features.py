"""Features: how a log column becomes ids or numbers."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Section

# Every embedding table begins with these rows; values seen in the training split, or hash buckets, follow.
MISSING_ID = 0
UNKNOWN_ID = 1
FIRST_VALUE_ID = 2

ShardingType = Literal["table_wise", "column_wise", "row_wise", "table_row_wise", "grid_shard"]


class Vocabulary(Section):
    """Values of the training split get an id each; values seen less than `min_count` times share the unknown id."""

    min_count: int = Field(default=1, ge=1)
    max_size: int | None = Field(default=None, ge=1)


class Ids(Section):
    """Where ids come from: exactly one of a vocabulary, or a number of hash buckets."""

    vocabulary: Vocabulary | None = None
    hash: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _exactly_one(self) -> "Ids":
        if (self.vocabulary is None) == (self.hash is None):
            raise ValueError("give exactly one of `vocabulary: {...}` and `hash: BUCKETS`")
        return self


class Encode(Section):
    """How a number enters: as the embedding of its quantile bucket, or standardised as it is."""

    quantiles: int | None = Field(default=None, ge=2)
    standardize: Literal["identity", "log1p"] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "Encode":
        if (self.quantiles is None) == (self.standardize is None):
            raise ValueError("give exactly one of `quantiles: BUCKETS` and `standardize: identity | log1p`")
        return self


class _Column(Section):
    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    column: str


class _Embedded(_Column):
    """A feature whose ids are looked up in a table: its own (`ids` and `dim`), or that of the feature it `shares`."""

    ids: Ids | None = None
    dim: int | None = Field(default=None, ge=1)
    shares: str | None = None
    sharding: ShardingType | None = None

    @model_validator(mode="after")
    def _own_or_shared(self) -> "_Embedded":
        own = [self.ids is not None, self.dim is not None]
        if self.shares is None and not all(own):
            raise ValueError("a feature with a table of its own needs `ids` and `dim`; or name another's with `shares`")
        if self.shares is not None and (any(own) or self.sharding is not None):
            raise ValueError("`shares` takes the other feature's table: remove `ids`, `dim` and `sharding`")
        return self

    @property
    def table(self) -> str:
        """Name of the embedding table that holds this feature's rows."""
        return self.shares or self.name


class Categorical(_Embedded):
    """One id a row. Integers, strings, booleans, or floats that are whole numbers."""

    kind: Literal["categorical"]


class Multivalued(_Embedded):
    """Any number of ids a row, pooled. A list column, or a string split at `separator`."""

    kind: Literal["multivalued"]
    separator: str | None = Field(default=None, min_length=1)
    pooling: Literal["mean", "sum"] = "mean"


class Sequence(_Embedded):
    """A behaviour: ids of a list column, oldest first, of which the last `max_length` are kept."""

    kind: Literal["sequence"]
    max_length: int = Field(ge=1)


class Numeric(_Column):
    """A number. With quantiles it is an embedding of `dim`; standardised it enters as one value."""

    kind: Literal["numeric"]
    encode: Encode
    dim: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _dim_with_quantiles(self) -> "Numeric":
        if (self.encode.quantiles is None) != (self.dim is None):
            raise ValueError("`dim` belongs to `quantiles` and to nothing else")
        return self

    @property
    def table(self) -> str | None:
        """Name of the bucket embedding table; None for a standardised number."""
        return self.name if self.encode.quantiles else None


Feature = Annotated[Categorical | Numeric | Multivalued | Sequence, Field(discriminator="kind")]


def embedded_features(features: list[Feature]) -> dict[str, Categorical | Multivalued | Sequence]:
    """Features whose ids come from a column of ids, by name."""
    return {feature.name: feature for feature in features if not isinstance(feature, Numeric)}
