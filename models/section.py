"""What the configuration of every model part has in common."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Widths = list[Annotated[int, Field(ge=1)]]  # of layers, the first layer first


class ModelSection(BaseModel):
    """A frozen part of the experiment's `model` section, kept beside the module that it configures."""

    model_config = ConfigDict(extra="forbid", frozen=True)
