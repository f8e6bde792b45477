"""The common base of the configuration of all model parts."""

from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field

Widths = list[Annotated[int, Field(ge=1)]]  # widths of layers, from first to last


class ModelSection(BaseModel):
    """A frozen section of the experiment file that configures a part of the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def sections_by_kind(union: Any) -> dict[str, type[ModelSection]]:
    """The classes of a union of sections, such as `TrunkConfig`, by their `kind`."""
    return {get_args(section.model_fields["kind"].annotation)[0]: section for section in get_args(get_args(union)[0])}
