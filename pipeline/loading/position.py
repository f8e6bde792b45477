"""The position of a run in its samples."""

from dataclasses import dataclass

from pipeline.documents import KNOWN_KEYS_ONLY


@dataclass(frozen=True)
class Position:
    """The global batch to read next: number `step` of epoch number `epoch`, both counted from 0."""

    __pydantic_config__ = KNOWN_KEYS_ONLY

    epoch: int = 0
    step: int = 0
