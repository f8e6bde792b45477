"""Commands of the soak as real processes: started, watched, and ended with all processes that they have started."""

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 180  # a command that takes longer counts as hung
POLL_S = 0.02
PR_SET_CHILD_SUBREAPER = 36
RAY_OF_THE_NODE = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")  # not workers: without them the node ends


def adopt_orphans() -> None:
    """Makes processes that lose their parent children of this one, so that those of a killed Ray can be found."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl cannot make this process adopt orphans")


def end_all() -> None:
    """Kills all processes below this one and waits for their end. Processes started elsewhere are not affected."""
    while True:
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(POLL_S)


def manygate(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "jobs.cli", *arguments]


def torchrun(workers: int, *arguments: str) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
    return [sys.executable, *launcher, "-m", "jobs.cli", *arguments]


@dataclass(frozen=True)
class Moment:
    """When a kill comes: in `seconds`; with `lines`, `seconds` after a file has got that many more lines."""

    seconds: float
    lines: int = 0


class Running:
    """A running command, with its output in a file."""

    def __init__(self, command: list[str], log: Path) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",  # torchrun would set this with a warning; workers choose their threads themselves
            "OMP_WAIT_POLICY": "passive",
            "RAY_ADDRESS": "local",  # never a head that somebody else has started
            "RAY_TMPDIR": str(log.parent),  # a killed Ray leaves its files there
        }
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(  # noqa: S603 - our own command
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )
        self._due_at = time.monotonic() + LIMIT_S

    def until(self, condition: Callable[[], bool]) -> bool:
        """Waits for a condition; False if the command ends or reaches its time limit first."""
        while self.process.poll() is None and time.monotonic() < self._due_at:
            if condition():
                return True
            time.sleep(POLL_S)
        return False

    def reaches(self, moment: Moment, metrics: Path) -> bool:
        """Waits for a moment; False if the command ends first."""
        if moment.lines and not self.until(more_lines(metrics, moment.lines)):
            return False
        start = time.monotonic()
        return self.until(lambda: time.monotonic() - start >= moment.seconds)

    def end(self) -> int | None:
        """Waits for the end and returns the exit code, or None at the time limit. Nothing is left running."""
        self.until(lambda: False)
        code = self.process.poll()
        self.kill()
        return code

    def kill(self) -> None:
        """Kills the command, then all processes below it."""
        self.process.kill()
        self.process.wait()  # before any other process, or its exit code would be lost
        end_all()

    def children(self) -> list[psutil.Process]:
        """Workers of torchrun, by age."""
        with suppress(psutil.NoSuchProcess):
            return sorted(psutil.Process(self.process.pid).children(), key=lambda child: child.pid)
        return []

    def ray_workers(self, title: str) -> list[psutil.Process]:
        """Worker processes of the command's own Ray whose title begins with `title`, by age."""
        found = []
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess, IndexError):
                name = child.cmdline()[0]
                if name.startswith(title) and not name.startswith(RAY_OF_THE_NODE):
                    found.append(child)
        return sorted(found, key=lambda child: child.pid)

    def output(self) -> str:
        return self.log.read_text(errors="replace")


def more_lines(file: Path, count: int) -> Callable[[], bool]:
    """Whether a file has got this many more lines. A resumed run first drops the lines after its checkpoint."""
    fewest: int | None = None

    def reached() -> bool:
        nonlocal fewest
        try:
            lines = file.read_bytes().count(b"\n")
        except FileNotFoundError:
            lines = 0
        fewest = lines if fewest is None else min(fewest, lines)
        return lines - fewest >= count

    return reached
