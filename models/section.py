"""The common base of the configuration of all model parts."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Widths = list[Annotated[int, Field(ge=1)]]  # widths of layers, from first to last


class ModelSection(BaseModel):
    """A frozen section of the experiment file that configures a part of the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)
