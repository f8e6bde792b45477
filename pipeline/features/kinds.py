"""The kinds of features: one line each."""

from typing import Annotated

from pydantic import Field

from pipeline.features.categorical import CategoricalFeature
from pipeline.features.multivalued import MultivaluedFeature
from pipeline.features.numeric import NumericFeature
from pipeline.features.sequence import SequenceFeature

AnyFeature = Annotated[
    CategoricalFeature | NumericFeature | MultivaluedFeature | SequenceFeature,
    Field(discriminator="kind"),
]
