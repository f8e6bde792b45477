"""The checkpoint that a command line names, parsed in one place."""

from dataclasses import dataclass
from typing import Literal, get_args

from pipeline import storage

Word = Literal["auto", "never", "latest", "best"]


@dataclass(frozen=True)
class CheckpointChoice:
    """The value of `--resume` or `--checkpoint`: a word, or the path of a checkpoint."""

    word: Word | None  # None for a path
    path: str = ""

    @staticmethod
    def parse(text: str) -> "CheckpointChoice":
        """Parses a word, or else a path. The path is made absolute, because workers run in other folders."""
        for word in get_args(Word):
            if text == word:
                return CheckpointChoice(word)
        return CheckpointChoice(None, storage.absolute(text))

    def __str__(self) -> str:
        """The value as written on a command line."""
        return self.word or self.path


AUTO = CheckpointChoice("auto")
NEVER = CheckpointChoice("never")
LATEST = CheckpointChoice("latest")
BEST = CheckpointChoice("best")
