"""What every section of the experiment file has in common."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen part of the experiment file that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)
