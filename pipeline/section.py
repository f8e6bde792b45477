"""What every section of the experiment file has in common."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import get_args

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen part of the experiment file that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def kind_of(section: type[BaseModel]) -> str | None:
    """The `kind` that selects this section where sections of several kinds are possible; None if it has none."""
    field = section.model_fields.get("kind")
    return get_args(field.annotation)[0] if field else None


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint: the known name that is closest to a wrong name, or a list of all known names."""
    words = {word.lower(): word for word in known}
    close = get_close_matches(name.lower(), words, n=1)
    return f"did you mean {words[close[0]]!r}?" if close else f"known: {', '.join(words.values()) or 'none'}"
