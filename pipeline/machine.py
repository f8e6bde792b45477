"""Memory and CPUs that this process may use: those of the machine, or the limits of its container if they are less.

A container is a control group (cgroup) of Linux. Its limits are files, in version 2 ``memory.max`` and ``cpu.max``, in
version 1 ``memory.limit_in_bytes`` and ``cpu.cfs_quota_us``. A group is also subject to the limits of the groups that
contain it, so every level is read, from the process's own group up to the highest level that is visible here.
"""

import math
import os
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class Limit:
    """An amount that this process may use."""

    amount: int
    file: str | None  # the file that limits it; None: the machine has no more


def memory(proc: Path = PROC) -> Limit:
    """Bytes of memory."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return _smallest(machine, proc, "memory", {1: _memory_of_version_1, 2: _memory_of_version_2})


def cpus(proc: Path = PROC) -> Limit:
    """Number of CPUs. A share of a CPU counts as a whole CPU."""
    machine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return _smallest(machine, proc, "cpu", {1: _cpus_of_version_1, 2: _cpus_of_version_2})


def identity(proc: Path = PROC) -> str:
    """A text that the processes of one machine or container have in common, and those of another do not.

    A container has its own host name; machines that were copied may have the same one, but were started separately.
    """
    return f"{socket.gethostname()}/{_text(proc / 'sys/kernel/random/boot_id')}"


Read = Callable[[Path], tuple[float | None, Path]]
"""Reads the limit in a group's folder: None if there is none; and the file."""


def _smallest(machine: int, proc: Path, controller: str, read: dict[int, Read]) -> Limit:
    found = Limit(machine, None)
    for version, folder in _groups(proc, controller):
        amount, file = read[version](folder)
        if amount is not None and 0 < amount < found.amount:
            found = Limit(math.ceil(amount), str(file))
    return found


def _memory_of_version_2(folder: Path) -> tuple[float | None, Path]:
    file = folder / "memory.max"
    return _number(_text(file)), file


def _memory_of_version_1(folder: Path) -> tuple[float | None, Path]:
    file = folder / "memory.limit_in_bytes"
    return _number(_text(file)), file  # without a limit, a number larger than any memory


def _cpus_of_version_2(folder: Path) -> tuple[float | None, Path]:
    file = folder / "cpu.max"
    quota, _, period = _text(file).partition(" ")
    return _ratio(quota, period), file


def _cpus_of_version_1(folder: Path) -> tuple[float | None, Path]:
    file = folder / "cpu.cfs_quota_us"  # without a limit, -1
    return _ratio(_text(file), _text(folder / "cpu.cfs_period_us")), file


def _groups(proc: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """The folders of this process's groups that may have limits of a controller, each with its version.

    Version 2 has one hierarchy for all controllers, version 1 one for each. A machine may have both.
    """
    paths = {}  # of this process's groups in their hierarchies: by controller, and "" for version 2
    for line in _text(proc / "self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        paths.update(dict.fromkeys(controllers.split(","), path))
    for line in _text(proc / "self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        mount, file_system = before.split(" "), after.split(" ")
        if len(mount) < 5 or len(file_system) < 3:
            continue
        root, point = _unescaped(mount[3]), Path(_unescaped(mount[4]))
        if file_system[0] == "cgroup2" and "" in paths:
            yield from ((2, folder) for folder in _levels(point, root, paths[""]))
        elif file_system[0] == "cgroup" and controller in paths and controller in file_system[2].split(","):
            yield from ((1, folder) for folder in _levels(point, root, paths[controller]))


def _levels(point: Path, root: str, path: str) -> list[Path]:
    """The folders of a group and of those that contain it, from the mount's root down.

    Args:
        point: where the hierarchy is mounted.
        root: the group in the hierarchy that is visible there; in a container often the container's own.
        path: the process's group in the hierarchy. A group that is not visible here leaves only the mount's root.
    """
    top = root.rstrip("/")
    inside = path.removeprefix(top) if f"{path}/".startswith(f"{top}/") else ""
    folders = [point]
    for part in inside.strip("/").split("/"):
        if part in ("", ".."):
            break
        folders.append(folders[-1] / part)
    return folders


def _unescaped(text: str) -> str:
    """A path as the kernel writes it in mountinfo, where a space is ``\\040``."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), text)


def _text(file: Path) -> str:
    """The content of a file of the kernel; empty if this machine has no such file or does not let it be read."""
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def _ratio(quota: str, period: str) -> float | None:
    numbers = _number(quota), _number(period)
    return numbers[0] / numbers[1] if numbers[0] is not None and numbers[1] else None
