"""The two sides of a contest: contestants are processes that work in turn, so that other load on the machine affects
all equally. Standard library only, because contestants run in different environments.

A contestant writes one JSON line when it is ready and one after every round; it starts a round when it reads a line.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]


class ContestantError(Exception):
    """A contestant ended before its work was done."""


class Turns:
    """The contestant's side. All other output of the process goes to standard error."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def ready(self, **about: Any) -> None:
        self._answer({"ready": True, **about})

    def wait(self) -> bool:
        """Waits for the next round; False if there is none."""
        return sys.stdin.readline() != ""

    def done(self, samples: float, seconds: float) -> None:
        """Reports a round."""
        self._answer({"samples": samples, "seconds": seconds})

    def _answer(self, message: Mapping[str, Any]) -> None:
        self._answers.write(json.dumps(message) + "\n")
        self._answers.flush()


def serve(work: Callable[[], float], **about: Any) -> None:
    """Takes turns with a function that does a round's work and returns its number of samples."""
    turns = Turns()
    turns.ready(**about)
    while turns.wait():
        start = time.perf_counter()
        samples = work()
        turns.done(samples, time.perf_counter() - start)


@dataclass
class Contestant:
    """A contestant, seen from the process that starts it."""

    name: str
    command: Sequence[str]
    rates: list[float] = field(default_factory=list)  # samples per second, one value per round

    def start(self) -> None:
        """Starts the process and waits until it is ready."""
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(  # noqa: S603 - commands are written in this folder
            list(self.command),
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        self._read()

    def round(self) -> None:
        """Lets the process work for one round."""
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write("go\n")
        stdin.flush()
        done = self._read()
        self.rates.append(done["samples"] / done["seconds"])

    def stop(self) -> None:
        """Ends the process; does nothing if it was not started."""
        if hasattr(self, "_process") and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()

    @property
    def rate(self) -> float:
        """Samples per second, the median of the rounds."""
        return statistics.median(self.rates)

    def _read(self) -> dict[str, Any]:
        stdout: IO[str] | None = self._process.stdout
        assert stdout is not None
        line = stdout.readline()
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            raise ContestantError(f"{self.name} ended with {code}:\n{self._errors.read()[-2000:]}")
        message: dict[str, Any] = json.loads(line)
        return message


def compete(contestants: Sequence[Contestant], rounds: int, warm_up: int = 1) -> None:
    """Starts all contestants and lets them work in turn, in a new random order every round."""
    order, shuffle = list(contestants), random.Random(0)  # noqa: S311 - no secret
    try:
        for contestant in contestants:
            contestant.start()
        for number in range(warm_up + rounds):
            shuffle.shuffle(order)
            for contestant in order:
                contestant.round()
            if number < warm_up:
                for contestant in contestants:
                    contestant.rates.clear()
    finally:
        for contestant in contestants:
            contestant.stop()
