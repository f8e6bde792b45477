"""The kinds of features: one line per kind."""

from typing import Annotated, get_args

from pydantic import Field

from pipeline.features.base import BaseFeature
from pipeline.features.categorical import CategoricalFeature
from pipeline.features.multivalued import MultivaluedFeature
from pipeline.features.numeric import NumericFeature
from pipeline.features.sequence import SequenceFeature
from pipeline.section import kind_of

AnyFeature = Annotated[
    CategoricalFeature | NumericFeature | MultivaluedFeature | SequenceFeature,
    Field(discriminator="kind"),
]

FEATURE_KINDS: dict[str, type[BaseFeature]] = {
    kind: feature for feature in get_args(get_args(AnyFeature)[0]) if (kind := kind_of(feature)) is not None
}
"""The class of each `kind`."""
