"""Which checkpoint a command line names, parsed in one place."""

from dataclasses import dataclass
from typing import Literal, get_args

from pipeline import storage

Word = Literal["auto", "never", "latest", "best"]


@dataclass(frozen=True)
class CheckpointChoice:
    """What `--resume` or `--checkpoint` names: a word, or the path of a checkpoint."""

    word: Word | None  # None where it is a path
    path: str = ""

    @staticmethod
    def parse(text: str) -> "CheckpointChoice":
        """A word, or else a path, which is made absolute: workers run in other folders."""
        for word in get_args(Word):
            if text == word:
                return CheckpointChoice(word)
        return CheckpointChoice(None, storage.absolute(text))

    def __str__(self) -> str:
        """As a command line has it."""
        return self.word or self.path


AUTO = CheckpointChoice("auto")
NEVER = CheckpointChoice("never")
LATEST = CheckpointChoice("latest")
BEST = CheckpointChoice("best")
