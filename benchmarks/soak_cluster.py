"""Disturbs training on several machines at random, and compares its samples and losses with an undisturbed run.

    python -m benchmarks.soak_cluster --minutes 60 [--seed 0] [--output benchmarks/soak_cluster.json]

The machines are made on this host (tests/machines): with root and iproute2 each has its own network, and shares no disk
with the others. In a round a run is sent to a cluster of a head and three other machines. Up to four times, at a random
step, a machine is lost, drained, paused, unplugged, or added, or the head is lost and the same command sent to a new
one. At the end, every global batch must have had its samples, once in the history of the model, and the losses must be
those of an undisturbed run on one machine, up to rounding. Where machines were only added and drained, no step may have
been made twice. The folder of a round with a difference is kept. Exits with 1 if there is a difference.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path
from typing import Any

from benchmarks.soak import Difference, machine
from tests.machines.machines import Machine, NamespaceMachine, network
from tests.machines.ray_cluster import ROOT, Command, RayCluster
from tests.machines.records import Attempt, Records, loss_distance, losses, sample_difference
from tests.machines.runs import COMMAND_S, FILE, LAST, NAME, run_here, stored, write_project
from tests.object_store import ObjectStore, object_store

CPUS = {2: 2, 3: 1, 4: 1}  # of the machines beside the head; four lanes can use all of them
SPARE, SPARE_CPUS = (5, 6), 1  # machines that are added
MOST_DISTURBANCES = 4
LATER_S = 0.5  # at most, after a step: a save may then be in progress
AWAY_S = 30.0  # at most, for a machine that is paused or unplugged; Ray gives it up after about 15 s
NOTICE_S = 60  # from the notice that a machine will be taken away to its end
DELAY_S = 40.0  # at most, from the return of a machine to the last consequence of its absence
APART = 1e-6  # of losses


@dataclass(frozen=True)
class Event:
    """A disturbance."""

    kind: str
    start: float
    end: float

    @property
    def is_announced(self) -> bool:
        """Whether the run knows of it in time, so that it must not make a step twice."""
        return self.kind in ("drained", "added")


@dataclass
class Round:
    """One round in progress."""

    name: str
    cluster: RayCluster
    project: Path
    store: ObjectStore
    rng: random.Random
    events: list[Event] = field(default_factory=list)
    leaving: set[int] = field(default_factory=set)  # machines that are being drained

    def play(self) -> None:
        """Sends a run, disturbs it, and waits for its end. Then the machines that were drained are gone."""
        self.cluster.ensure(CPUS)
        steps = sorted(self.rng.sample(range(5, LAST - 5), self.rng.randint(1, MOST_DISTURBANCES)))
        self.cluster.hold(steps[0])
        command = self.submit()
        for step, following in zip(steps, [*steps[1:], None], strict=True):
            self.cluster.wait_until_held(self.name, step, command)
            if following is None:
                self.cluster.release()
            else:
                self.cluster.hold(following)
            time.sleep(self.rng.uniform(0, LATER_S))
            command = self.disturb(command)
        code = command.end(COMMAND_S)
        if code != 0:
            raise Difference(f"the command ended with {code}", command.output())
        for number in self.leaving:
            self.cluster.machines[number].power_cut()

    def submit(self) -> Command:
        keys = (f"name={self.name}", f"table.path={self.store.uri(f'runs/{NAME}/table')}", "training.max_restarts=20")
        return self.cluster.submit(self.project, "train", FILE, "--workers", "1-4", *keys)

    def disturb(self, command: Command) -> Command:
        """Disturbs the run in a random way that leaves it a machine; returns the command that then continues it."""
        here = {
            number: machine
            for number, machine in self.cluster.machines.items()
            if self.cluster.has(machine) and machine is not self.cluster.head and number not in self.leaving
        }
        absent = [number for number in (*CPUS, *SPARE) if number not in here and number not in self.leaving]
        kinds = ["added"] if absent else []
        if len(here) > 1:
            kinds += ["lost", "drained", "paused"]
            kinds += ["unplugged"] if all(isinstance(machine, NamespaceMachine) for machine in here.values()) else []
        kind = self.rng.choice([*kinds, "head lost"])
        start = time.time()
        if kind == "head lost":
            command = self.lose_head(command)
        elif kind == "added":
            self.add(absent[0])
        else:
            number = self.rng.choice(sorted(here))
            self.disturb_machine(kind, number, here[number])
        self.events.append(Event(kind, start, time.time()))
        return command

    def disturb_machine(self, kind: str, number: int, victim: Machine) -> None:
        seconds = self.rng.uniform(1, AWAY_S)
        if kind == "lost":
            victim.power_cut()
        elif kind == "drained":
            self.leaving.add(number)
            self.cluster.drain(victim, NOTICE_S)
        elif kind == "paused":
            victim.pause()
            time.sleep(seconds)
            victim.resume()
        else:
            assert isinstance(victim, NamespaceMachine)
            victim.unplug()
            time.sleep(seconds)
            victim.plug()

    def add(self, number: int) -> None:
        """Starts a machine that is down, and waits until it has joined."""
        self.cluster.add(number, CPUS.get(number, SPARE_CPUS))
        self.cluster.wait_for_machines(number)

    def lose_head(self, command: Command) -> Command:
        """Loses the head, and with it the cluster; sends the same command to a new one."""
        assert self.cluster.head is not None
        self.cluster.head.power_cut()
        code = command.end(COMMAND_S)
        if code == 0:
            raise Difference("the command succeeded without a head", command.output())
        self.cluster.lose_all()
        self.leaving.clear()
        self.cluster.ensure(CPUS)
        return self.submit()

    def check(self, undisturbed: Records, expected_losses: dict[tuple[int, str], float]) -> None:
        """Compares the run with the undisturbed one.

        Raises:
            Difference: it has other samples or losses, or has repeated steps without need.
        """
        records = self.cluster.records_of(self.name)
        if difference := sample_difference(undisturbed, records):
            raise Difference(difference)
        for earlier, later in pairwise(records.attempts()):
            if later.first_step > earlier.last_step + 1:
                raise Difference(f"an attempt began at step {later.first_step}, after {earlier.last_step}")
            if (again := later.repeats(earlier)) and not self.was_surprised(earlier, later):
                raise Difference(f"the steps {again} were made twice, though nothing was lost")
        metrics = stored(self.store, f"runs/{self.name}")["metrics.jsonl"].decode()
        if (distance := loss_distance(expected_losses, losses(metrics))) > APART:
            raise Difference(f"a loss differs by {distance:.2g}")

    def was_surprised(self, earlier: Attempt, later: Attempt) -> bool:
        """Whether something that was not announced can have ended an attempt."""
        return any(
            event.end + DELAY_S > earlier.start and event.start < later.start
            for event in self.events
            if not event.is_announced
        )


@dataclass
class Tally:
    """The counts and the differences so far."""

    seed: int
    rounds: int = 0
    disturbances: Counter[str] = field(default_factory=Counter)
    restarts: int = 0
    steps: int = 0
    repeated: int = 0
    found: list[dict[str, Any]] = field(default_factory=list)
    start: float = field(default_factory=time.monotonic)

    def add(self, this: Round, records: Records, difference: str | None) -> None:
        self.rounds += 1
        self.disturbances.update(event.kind for event in this.events)
        attempts = records.attempts()
        self.restarts += max(len(attempts) - 1, 0)
        self.steps += sum(len(attempt.steps) for attempt in attempts)
        self.repeated += sum(len(later.repeats(earlier)) for earlier, later in pairwise(attempts))
        if difference is not None:
            self.found.append({"seed": self.seed, "round": this.name, "what": difference})

    def to_dict(self) -> dict[str, Any]:
        return {
            "rounds": self.rounds,
            "disturbances": dict(sorted(self.disturbances.items())),
            "starts_again": self.restarts,
            "steps": self.steps,
            "steps_repeated_after_a_loss": self.repeated,
            "differences": len(self.found),
            "minutes": round((time.monotonic() - self.start) / 60, 1),
            "seed": self.seed,
            "machine": machine(),
            "found": self.found,
        }


def play(this: Round, check: Callable[[Round], None], tally: Tally) -> bool:
    """Plays a round and counts it; returns whether it ended as the undisturbed run did."""
    difference, output, start = None, "", time.monotonic()
    try:
        this.play()
        check(this)
    except Difference as error:
        difference, output = str(error), error.output
    except AssertionError as error:  # the harness waited in vain
        difference, output = str(error).partition("\n")[0], str(error)
    tally.add(this, this.cluster.records_of(this.name), difference)
    done = ", ".join(event.kind for event in this.events)
    outcome = "as undisturbed" if difference is None else f"DIFFERENCE: {difference}\n{output}"
    print(f"{this.name}: {done}; {time.monotonic() - start:.0f} s, {outcome}", flush=True)
    return difference is None


def soak(minutes: float, tally: Tally, folder: Path) -> None:
    """Plays rounds until the time is up. After a difference, the next round begins with a new cluster."""
    with network([Path(sys.prefix), Path(sys.base_prefix), ROOT, folder]) as net, object_store(net.host) as store:
        project, alone = folder / "project", folder / "alone"
        project.mkdir()
        alone.mkdir()
        write_project(project, store)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        for command in ("preprocess", "train"):
            run_here(project, alone, {**environment, **store.environment}, command, FILE)
        expected = losses((alone / NAME / "metrics.jsonl").read_text())
        undisturbed = Records(alone / "records" / NAME)
        cluster = RayCluster(net, folder, store.endpoint)
        cluster.ensure(CPUS)
        table = cluster.submit(project, "preprocess", FILE)
        assert table.end(COMMAND_S) == 0, table.output()
        for number in count(1):
            if time.monotonic() - tally.start >= minutes * 60:
                return
            rng = random.Random(f"{tally.seed}/{number}")  # noqa: S311 - no secret
            this = Round(f"round-{number:04d}", cluster, project, store, rng)
            if not play(this, lambda done: done.check(undisturbed, expected), tally):
                cluster.lose_all()


def main() -> int:
    """Plays rounds until the time is up."""
    parser = argparse.ArgumentParser(description="Disturbs training on several machines and compares the results.")
    parser.add_argument("--minutes", type=float, required=True, help="duration; a round in progress is finished")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/soak_cluster.json"), help="JSON file to write the counts to"
    )
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("soak: stopped by SIGTERM"))  # the machines are removed
    tally = Tally(args.seed)
    folder = Path(tempfile.mkdtemp(prefix="soak-cluster-"))
    try:
        soak(args.minutes, tally, folder)
    finally:
        args.output.write_text(json.dumps(tally.to_dict(), indent=1) + "\n")
        if not tally.found:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(tally.to_dict(), indent=1))
    if tally.found:
        print(f"The logs and records are kept in {folder}.")
    return 1 if tally.found else 0


if __name__ == "__main__":
    sys.exit(main())
