"""Machines on one host, which can be started, cut off, paused and lost like real ones.

With root and iproute2, a machine is a set of Linux namespaces: it has its own address on a bridge, name, processes,
/tmp, /dev/shm, home folder and /etc/hosts, and shares no disk with the others. Otherwise a machine is only a group of
processes that listens on the loopback interface.
"""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

LIMIT_S = 30
POLL_S = 0.05
# Names of bridges, links and namespaces contain the id of the process that made them: it removes them, or the first
# run after it does, if it was killed.
OURS = re.compile(r"mg([0-9a-f]+)n\d+(br|v\d+|-\d+)")
_numbers = itertools.count(1)


def can_have_namespaces() -> bool:
    """Whether this process may make machines with their own network: it needs root, iproute2 and util-linux."""
    has_programs = all(shutil.which(name) for name in ("ip", "unshare", "nsenter", "setpriv"))
    trial = f"mg{os.getpid():x}n0br"
    return (
        has_programs
        and os.geteuid() == 0
        and try_ip("link", "add", trial, "type", "bridge")
        and try_ip("link", "del", trial)
    )


class Machine:
    """A running machine. `process` is its first process, as the host sees it."""

    def __init__(self, name: str, address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.name = name
        self.address = address
        self.process = process
        self.log = log  # of its first process; survives the machine

    def processes(self) -> list[psutil.Process]:
        """All processes of the machine, the first one last."""
        with suppress(psutil.NoSuchProcess):
            first = psutil.Process(self.process.pid)
            return [*first.children(recursive=True), first]
        return []

    def is_up(self) -> bool:
        return self.process.poll() is None

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> str:
        """Runs a command on the machine; it must succeed. Returns its output."""
        done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, timeout=LIMIT_S * 4)
        assert done.returncode == 0, f"{command} on {self.name}: {done.stdout}{done.stderr}"
        return done.stdout

    def power_cut(self) -> None:
        """Ends the machine at once: nothing of it says goodbye."""
        self._signal(signal.SIGSTOP)  # no process sees another one die
        self._signal(signal.SIGKILL)
        self.process.wait(LIMIT_S)

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)


class NamespaceMachine(Machine):
    """A machine with its own network, which can be unplugged."""

    def __init__(
        self, name: str, address: str, process: "subprocess.Popen[bytes]", log: Path, namespace: str, link: str
    ) -> None:
        super().__init__(name, address, process, log)
        self.namespace = namespace
        self._link = link

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> str:
        first = psutil.Process(self.process.pid).children()[0].pid
        enter = ["nsenter", f"--target={first}", "--mount", "--uts", "--net", "--pid", "--"]
        return super().run([*enter, *command], environment)

    def power_cut(self) -> None:
        """As above, and the network is gone first: no connection is closed, as when the power is."""
        self.unplug()
        super().power_cut()
        wait_until_empty(self.namespace)

    def unplug(self) -> None:
        ip("link", "set", self._link, "down")

    def plug(self) -> None:
        ip("link", "set", self._link, "up")

    def lose_sight_of(self, other: Machine) -> None:
        """Drops everything that this machine sends to another one, as a firewall does: without an answer."""
        nowhere = ("lladdr", "02:00:00:00:00:01", "nud", "permanent")
        ip("-n", self.namespace, "neigh", "replace", other.address, *nowhere, "dev", "eth0")

    def see_again(self, other: Machine) -> None:
        ip("-n", self.namespace, "neigh", "del", other.address, "dev", "eth0")


class Processes:
    """Machines that are only groups of processes, all on the loopback interface."""

    host = "127.0.0.1"
    has_network = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._machines: list[Machine] = []

    def address(self, number: int) -> str:
        return self.host

    def start(self, number: int, command: Sequence[str], environment: Mapping[str, str]) -> Machine:
        """Starts a machine with this number, whose first process is a command."""
        home = self.folder / f"home-{number}"
        home.mkdir(exist_ok=True)
        log = self.folder / f"machine-{number}-{len(self._machines)}.log"
        process = popen(command, {**environment, "HOME": str(home)}, log)
        machine = Machine(f"machine-{number}", self.host, process, log)
        self._machines.append(machine)
        return machine

    def close(self) -> None:
        for machine in self._machines:
            machine.power_cut()


class Namespaces:
    """A bridge, and machines on it in namespaces of their own."""

    has_network = True

    def __init__(self, folder: Path, kept: Sequence[Path]) -> None:
        """Makes the bridge, after removing what killed runs have left.

        Args:
            folder: for logs.
            kept: folders of the host that machines see, although they are below /tmp or /home.
        """
        remove_leftovers()
        self.folder = folder
        self._kept = [str(path) for path in kept]
        self._prefix = f"mg{os.getpid():x}n{next(_numbers)}"
        self._subnet = free_subnet()
        self._started = 0
        self.host = f"{self._subnet}.1"
        ip("link", "add", self._bridge, "type", "bridge")
        ip("addr", "add", f"{self.host}/24", "dev", self._bridge)
        ip("link", "set", self._bridge, "up")

    @property
    def _bridge(self) -> str:
        return f"{self._prefix}br"

    def address(self, number: int) -> str:
        return f"{self._subnet}.{10 + number}"

    def start(self, number: int, command: Sequence[str], environment: Mapping[str, str]) -> NamespaceMachine:
        """Starts a machine with this number, whose first process is a command. A lost machine may come back."""
        namespace, link, address = f"{self._prefix}-{number}", f"{self._prefix}v{number}", self.address(number)
        if namespace in namespaces():
            remove_namespace(namespace)
        ip("netns", "add", namespace)
        ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        ip("link", "set", link, "master", self._bridge, "up")
        ip("-n", namespace, "link", "set", "lo", "up")
        ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
        ip("-n", namespace, "link", "set", "eth0", "up")
        ip("-n", namespace, "route", "add", "default", "via", self.host)
        self._started += 1
        name, mount_point = f"machine-{number}", self.folder / f"mounts-{self._started}"
        mount_point.mkdir()
        enter = ["ip", "netns", "exec", namespace, "unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child"]
        script = [str(Path(__file__).with_name("machine.sh")), name, str(mount_point), *self._kept, "--"]
        log = self.folder / f"{name}-{self._started}.log"
        process = popen([*enter, "--mount-proc", *script, *command], {**environment, "HOME": "/home/ray"}, log)
        return NamespaceMachine(name, address, process, log, namespace, link)

    def close(self) -> None:
        remove(self._prefix)


Network = Processes | Namespaces


@contextmanager
def network(kept: Sequence[Path]) -> Iterator[Network]:
    """The best network that this host allows; its machines are lost at the end."""
    folder = Path(tempfile.mkdtemp(prefix="mg"))  # short: Ray's sockets are below it, and their paths are limited
    made: Network | None = None
    try:
        made = Namespaces(folder, kept) if can_have_namespaces() else Processes(folder)
        yield made
    finally:
        if made is not None:
            made.close()
        shutil.rmtree(folder, ignore_errors=True)


def popen(command: Sequence[str], environment: Mapping[str, str], log: Path) -> "subprocess.Popen[bytes]":
    """Starts a command in its own process group. It is killed when this thread ends, also by a kill."""
    with log.open("wb") as file:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout


def try_ip(*arguments: str) -> bool:
    return subprocess.run(["ip", *arguments], capture_output=True).returncode == 0


def namespaces() -> list[str]:
    return [line.split()[0] for line in ip("netns", "list").splitlines() if line.strip()]


def links() -> list[str]:
    return [link["ifname"] for link in json.loads(ip("-json", "link", "show"))]


def free_subnet() -> str:
    """The first three numbers of addresses that no interface of this host has."""
    used = {
        address["local"].rpartition(".")[0]
        for link in json.loads(ip("-json", "-4", "addr"))
        for address in link["addr_info"]
    }
    return next(subnet for n in range(256) if (subnet := f"10.77.{n}") not in used)


def remove(prefix: str) -> None:
    """Kills all machines of a network and removes their namespaces and links."""
    for name in namespaces():
        if name.startswith(f"{prefix}-"):
            remove_namespace(name)
    for name in links():
        if name.startswith(prefix) and OURS.fullmatch(name):
            try_ip("link", "del", name)  # the kernel may be removing it with its namespace


def remove_namespace(name: str) -> None:
    """Kills the processes of a namespace, then removes it, and with it its link."""
    wait_until_empty(name, signal.SIGKILL)
    ip("netns", "del", name)
    link = name.replace("-", "v")
    try_ip("link", "del", link)
    deadline = time.monotonic() + LIMIT_S
    while link in links():
        assert time.monotonic() < deadline, f"{link} is still there"
        time.sleep(POLL_S)


def wait_until_empty(namespace: str, kill: signal.Signals | None = None) -> None:
    deadline = time.monotonic() + LIMIT_S
    while pids := [int(pid) for pid in ip("netns", "pids", namespace).split()]:
        assert time.monotonic() < deadline, f"{pids} are still in {namespace}"
        for pid in pids if kill else []:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_S)


def remove_leftovers() -> None:
    """Removes machines, namespaces and links of runs that no longer exist."""
    for found in filter(None, map(OURS.fullmatch, [*namespaces(), *links()])):
        if not psutil.pid_exists(int(found[1], 16)):
            remove(found[0].removesuffix(found[2]))
