"""What the configuration of every model part has in common."""

from pydantic import BaseModel, ConfigDict


class ModelSection(BaseModel):
    """A frozen part of the experiment's `model` section, kept beside the module that it configures."""

    model_config = ConfigDict(extra="forbid", frozen=True)
