"""Kills real processes at random, repeatedly, and compares the results with those of undisturbed runs.

    python -m benchmarks.soak --minutes 30 [--seed 0] [--output benchmarks/soak.json]

A round takes a fresh copy, disturbs it up to four times, lets it finish and compares: tables file by file, runs bit by
bit (up to rounding where the number of workers changes). What a round does depends only on the seed, its number and the
speed of the machine. The folder of a round with a difference is kept; `--first N` begins with round N, to repeat it.
Exits with 1 if there is a difference.
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.soak_processes import LIMIT_S, Moment, Running, adopt_orphans, end_all, manygate, torchrun
from benchmarks.soak_runs import NAME, damage_newest, metrics, run_difference, table_difference, write_experiment
from pipeline.workers.stop import INTERRUPTED_EXIT_CODE

KILLED = -9
GROUP_FAILED = 1  # torchrun, when one of its workers has died
MOST_DISTURBANCES = 4
MOST_INSIDE = 2  # kills that one command must survive: fewer than training.max_restarts
LATER_S = 0.3  # at most, after a line: a save may then be in progress
RAY_IS_UP = "Ray: started"  # the message of cluster.connect
SHOWN = 1500  # characters of a failed command's output
# All experts are used, with noise in their shares. A selection would depend on rounding where two experts are equally
# close to a row, and sums are rounded differently on other numbers of workers.
SMOOTH = ("model.trunk.top_specific=8", "model.trunk.top_shared=8", "model.trunk.noise_in_mixture=true")


class Difference(Exception):  # noqa: N818 - the result that the soak looks for, not its own failure
    """A round did not end as the undisturbed run did."""

    def __init__(self, what: str, output: str = "") -> None:
        super().__init__(what)
        self.output = output[-SHOWN:]  # left out of the JSON file, because it contains paths and the host's name


@dataclass(frozen=True)
class Undisturbed:
    """The runs that rounds are compared with, and how long they took, in seconds."""

    folder: Path
    experiment: Path
    seconds: dict[str, float]

    def run(self, name: str) -> Path:
        """`table`, `alone`, `two` or `smooth`."""
        return self.folder / name / NAME


@dataclass
class Round:
    """One round in progress."""

    kind: str
    folder: Path
    undisturbed: Undisturbed
    rng: random.Random
    kills: int = 0
    commands: int = 0

    @property
    def run(self) -> Path:
        return self.folder / NAME

    def start(self, command: list[str]) -> Running:
        self.commands += 1
        return Running(command, self.folder / f"command-{self.commands}.log")

    def arguments(self, job: str) -> list[str]:
        return [job, str(self.undisturbed.experiment), f"output={self.folder}"]

    def moment(self, seconds: float) -> Moment:
        """A random moment in the duration of the undisturbed run, including its start; or in the training itself."""
        if self.rng.random() < 0.5:
            return Moment(self.rng.uniform(0.02, 1) * seconds)
        return self.moment_in_training()

    def moment_in_training(self) -> Moment:
        lines = len(metrics(self.undisturbed.run("alone")))
        return Moment(self.rng.uniform(0, LATER_S), self.rng.randint(1, lines // 3))

    def repeat(
        self,
        command: Callable[[], list[str]],
        moment: Callable[[], Moment],
        strike: Callable[[Running], int],
        between: Callable[[], object] = lambda: None,
    ) -> None:
        """Runs a command a few times and disturbs it each time, then runs it once more to its end.

        Args:
            command: returns the command of each attempt.
            moment: returns the moment of each disturbance.
            strike: disturbs the command and returns the expected exit code.
            between: called after each disturbance.
        """
        for _ in range(self.rng.randint(1, MOST_DISTURBANCES)):
            running, expected = self.start(command()), 0
            if running.reaches(moment(), self.run / "metrics.jsonl"):
                expected = strike(running)
            code = running.end()
            check(running, code, (0, expected))
            if code == 0:  # it ended before the disturbance
                break
            self.kills += 1
            between()
        self.finish(command())

    def finish(self, command: list[str]) -> None:
        """Runs a command to its end; it must succeed without a traceback."""
        running = self.start(command)
        check(running, running.end(), (0,))
        if "Traceback" in running.output():
            raise Difference(f"{running.log.name} succeeded, but with a traceback", running.output())

    def survive(self, command: list[str], moment: Callable[[], Moment], title: str) -> None:
        """Runs one command and kills workers of its Ray whose title begins with `title`; it must still succeed."""
        running = self.start(command)
        running.until(lambda: RAY_IS_UP in running.output())  # an earlier kill makes ray.init wait forever
        for _ in range(self.rng.randint(1, MOST_INSIDE)):
            reached = running.reaches(moment(), self.run / "metrics.jsonl")
            if not reached or not running.until(lambda: bool(running.ray_workers(title))):
                break
            workers = running.ray_workers(title)
            if workers:
                self.rng.choice(workers).kill()
                self.kills += 1
        check(running, running.end(), (0,))

    def compare_table(self) -> None:
        check_no_difference(table_difference(self.undisturbed.run("table") / "table", self.run / "table"))

    def compare_run(self, name: str, is_exact: bool = True) -> None:
        check_no_difference(run_difference(self.undisturbed.run(name), self.run, self.folder, is_exact))

    def copy_table(self) -> None:
        shutil.copytree(self.undisturbed.run("table") / "table", self.run / "table")


def check(running: Running, code: int | None, expected: tuple[int, ...]) -> None:
    """Raises Difference unless a command ended in one of the expected ways."""
    if code not in expected:
        ended = f"took more than {LIMIT_S} s" if code is None else f"ended with {code}"
        raise Difference(f"{running.log.name} {ended}", running.output())


def check_no_difference(difference: str | None) -> None:
    if difference is not None:
        raise Difference(difference)


def kill(running: Running) -> int:
    running.kill()
    return KILLED


def terminate(running: Running) -> int:
    running.process.terminate()
    return INTERRUPTED_EXIT_CODE


def kill_one_of(running: Running, rng: random.Random) -> int:
    """Kills a worker of torchrun, or torchrun itself and then its workers."""
    workers = running.children()
    place = rng.randrange(3)
    if place >= len(workers):
        return kill(running)
    workers[place].kill()
    return GROUP_FAILED


def preprocess_driver(this: Round) -> None:
    seconds = this.undisturbed.seconds["table"]
    this.repeat(
        lambda: manygate(*this.arguments("preprocess")), lambda: Moment(this.rng.uniform(0.02, 1) * seconds), kill
    )
    this.compare_table()


def preprocess_worker(this: Round) -> None:
    seconds = this.undisturbed.seconds["table"]
    command = manygate(*this.arguments("preprocess"))
    this.survive(command, lambda: Moment(this.rng.uniform(0, 0.25) * seconds), "ray::")
    this.compare_table()


def train_killed(this: Round) -> None:
    this.copy_table()
    command = manygate(*this.arguments("train"))
    this.repeat(lambda: command, lambda: this.moment(this.undisturbed.seconds["alone"]), kill)
    this.compare_run("alone")


def train_terminated(this: Round) -> None:
    this.copy_table()
    this.repeat(lambda: manygate(*this.arguments("train")), this.moment_in_training, terminate)
    this.compare_run("alone")


def train_one_of_two_killed(this: Round) -> None:
    this.copy_table()
    command = torchrun(2, *this.arguments("train"))
    moment = this.undisturbed.seconds["two"]
    this.repeat(lambda: command, lambda: this.moment(moment), lambda running: kill_one_of(running, this.rng))
    this.compare_run("two")


def train_other_workers(this: Round) -> None:
    this.copy_table()

    def command() -> list[str]:
        return torchrun(this.rng.choice((1, 2, 4)), *this.arguments("train"), *SMOOTH)

    this.repeat(command, lambda: this.moment(this.undisturbed.seconds["smooth"]), kill)
    this.compare_run("smooth", is_exact=False)


def checkpoint_damaged(this: Round) -> None:
    this.copy_table()
    damaged: set[Path] = set()

    def damage() -> None:
        if done := damage_newest(this.run, damaged, this.rng):
            (this.folder / f"damage-{this.commands}.txt").write_text(done)

    command = manygate(*this.arguments("train"))
    this.repeat(lambda: command, this.moment_in_training, kill, between=damage)
    this.compare_run("alone")


def train_on_ray(this: Round) -> None:
    this.copy_table()
    command = manygate(*this.arguments("train"), "--launcher", "ray", "--workers", "2")
    this.survive(command, this.moment_in_training, "ray::RayTrainWorker")
    this.compare_run("two")  # torchrun gives each worker as many threads


# How often each kind occurs in a deck; a round on Ray takes about a minute. The names are keys in the JSON file.
KINDS: dict[str, tuple[Callable[[Round], None], int]] = {
    "preprocess driver": (preprocess_driver, 2),
    "preprocess worker": (preprocess_worker, 2),
    "train killed": (train_killed, 2),
    "train asked to stop": (train_terminated, 2),
    "train, one of two killed": (train_one_of_two_killed, 2),
    "train, other workers": (train_other_workers, 2),
    "checkpoint damaged": (checkpoint_damaged, 2),
    "train on Ray, worker killed": (train_on_ray, 1),
}


def order(seed: int) -> Iterator[str]:
    """Kinds of rounds, endlessly, from shuffled decks."""
    rng = random.Random(seed)  # noqa: S311 - no secret
    deck = [kind for kind, (_, weight) in KINDS.items() for _ in range(weight)]
    while True:
        rng.shuffle(deck)
        yield from deck


@dataclass
class Tally:
    """The counts and the differences so far."""

    seed: int
    kinds: dict[str, dict[str, int]] = field(default_factory=dict)
    found: list[dict[str, Any]] = field(default_factory=list)
    start: float = field(default_factory=time.monotonic)

    def add(self, this: Round, number: int, difference: str | None) -> None:
        counts = self.kinds.setdefault(this.kind, {"runs": 0, "kills": 0, "differences": 0})
        counts["runs"] += 1
        counts["kills"] += this.kills
        if difference is not None:
            counts["differences"] += 1
            self.found.append({"kind": this.kind, "seed": self.seed, "round": number, "what": difference})

    def total(self, name: str) -> int:
        return sum(counts[name] for counts in self.kinds.values())

    def to_dict(self) -> dict[str, Any]:
        totals = {"kills": self.total("kills"), "runs": self.total("runs"), "differences": len(self.found)}
        minutes = round((time.monotonic() - self.start) / 60, 1)
        known = {"by_kind": self.kinds, "minutes": minutes, "seed": self.seed, "machine": machine()}
        return {**totals, **known, "found": self.found}

    def table(self) -> str:
        lines = [
            f"| {'kind':<27} |  runs | kills | differences |",
            f"| {'-' * 27} | ----: | ----: | ----------: |",
        ]
        totals = {"runs": self.total("runs"), "kills": self.total("kills"), "differences": len(self.found)}
        for kind, counts in {**self.kinds, "all": totals}.items():
            lines.append(f"| {kind:<27} | {counts['runs']:>5} | {counts['kills']:>5} | {counts['differences']:>11} |")
        return "\n".join(lines)


def machine() -> dict[str, Any]:
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def prepare(folder: Path) -> Undisturbed:
    """Makes, undisturbed, the table, runs of one and of two workers, and a run that does not select experts."""
    undisturbed = Undisturbed(folder, write_experiment(folder), {})
    commands = {
        "table": lambda this: manygate(*this.arguments("preprocess")),
        "alone": lambda this: manygate(*this.arguments("train")),
        "two": lambda this: torchrun(2, *this.arguments("train")),
        "smooth": lambda this: manygate(*this.arguments("train"), *SMOOTH),
    }
    for name, command in commands.items():
        this = Round(name, folder / name, undisturbed, random.Random(0))  # noqa: S311 - no secret
        this.folder.mkdir()
        if name != "table":
            this.copy_table()
        start = time.monotonic()
        this.finish(command(this))
        undisturbed.seconds[name] = time.monotonic() - start
    return undisturbed


def play(number: int, kind: str, undisturbed: Undisturbed, tally: Tally) -> None:
    """Plays one round; its folder is kept only if there is a difference."""
    rng = random.Random(f"{tally.seed}/{number}")  # noqa: S311 - no secret
    this = Round(kind, undisturbed.folder / f"{number:04d}", undisturbed, rng)
    this.folder.mkdir()
    difference, output, start = None, "", time.monotonic()
    try:
        KINDS[kind][0](this)
    except Difference as error:
        difference, output = str(error), error.output
    finally:
        end_all()
    tally.add(this, number, difference)
    outcome = "as undisturbed" if difference is None else f"DIFFERENCE, kept in {this.folder}: {difference}\n{output}"
    print(f"{number:4} {kind}: {this.kills} kills, {time.monotonic() - start:.0f} s, {outcome}", flush=True)
    if difference is None:
        shutil.rmtree(this.folder)


def main() -> int:
    """Plays rounds until the time is up."""
    parser = argparse.ArgumentParser(description="Kills processes at random and compares the results.")
    parser.add_argument("--minutes", type=float, required=True, help="duration; a round in progress is finished")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=1, metavar="N", help="number of the first round (default 1)")
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/soak.json"), help="JSON file to write the counts to"
    )
    args = parser.parse_args()
    adopt_orphans()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit("soak: stopped by SIGTERM")
    )  # the `finally` blocks end its processes
    tally = Tally(args.seed)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        undisturbed = prepare(folder)
        for number, kind in islice(enumerate(order(args.seed), 1), args.first - 1, None):
            if time.monotonic() - tally.start >= args.minutes * 60:
                break
            play(number, kind, undisturbed, tally)
    except Difference as error:  # in the preparation: there is nothing to compare with
        tally.found.append({"kind": "undisturbed", "seed": args.seed, "round": 0, "what": str(error)})
        print(f"DIFFERENCE in an undisturbed run, kept in {folder}: {error}\n{error.output}")
    finally:
        end_all()
        args.output.write_text(json.dumps(tally.to_dict(), indent=1) + "\n")
        if not tally.found:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{tally.table()}")
    return 1 if tally.found else 0


if __name__ == "__main__":
    sys.exit(main())
