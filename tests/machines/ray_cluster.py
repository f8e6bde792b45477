"""A Ray cluster on machines, the object store that it uses, and commands that are sent to it from outside."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.local_head import LOOPBACK_ONLY
from tests.machines.machines import Machine, Network
from tests.machines.records import Records
from tests.object_store import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
RECORDER = Path(__file__).parent / "recorder"
RAY_START = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
MEMORY, OBJECTS = "2000000000", "100000000"  # bytes of a machine, as Ray counts them
START_S = 150  # for a machine or a group of workers, on two busy cores
POLL_S = 0.1
# Ray finds out within about 15 seconds that a machine is gone. Shorter times lose healthy machines on two busy cores.
DETECTION = {
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "15",  # how long a machine survives its head
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
}


@dataclass(frozen=True)
class Node:
    """A machine as Ray's head knows it."""

    id: str
    name: str
    is_alive: bool


class RayCluster:
    """A head and other machines, each with some CPUs. They may be more than the host has."""

    def __init__(self, network: Network, folder: Path, endpoint: str) -> None:
        """Prepares; no machine is started.

        Args:
            network: on which the machines are started.
            folder: for the output of commands, and for records (see recorder/sitecustomize.py).
            endpoint: URL of the object store.
        """
        self._network = network
        self._folder = folder
        self._token = secrets.token_hex(32)
        self._commands = self._starts = 0
        self._node_names: dict[Machine, str] = {}
        self.records = folder / "records"
        self.records.mkdir()
        self._store = {**ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint}
        self.head: Machine | None = None
        self.machines: dict[int, Machine] = {}
        self._port = 6379 if network.has_network else free_port()
        self._dashboard_port = 8265 if network.has_network else free_port()

    @property
    def dashboard(self) -> str:
        assert self.head is not None
        return f"http://{self.head.address}:{self._dashboard_port}"

    @property
    def environment(self) -> dict[str, str]:
        """Of a process on one of the machines."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        kept = {name: os.environ[name] for name in ("LANG", "PYENV_ROOT") if name in os.environ}
        ray = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": str(START_S), **DETECTION}
        recording = {"PYTHONPATH": str(RECORDER), "MANYGATE_RECORDS": str(self.records)}
        quiet = {"PYTHONDONTWRITEBYTECODE": "1", "OMP_WAIT_POLICY": "passive"}
        ray |= {} if self._network.has_network else LOOPBACK_ONLY
        return {**kept, **quiet, **ray, **self._outside(), **recording, **self._store, "PATH": path}

    def _outside(self) -> dict[str, str]:
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self._token}

    def start_head(self, number: int = 1, cpus: int = 0) -> Machine:
        command = [*RAY_START, "--head", f"--port={self._port}", f"--dashboard-port={self._dashboard_port}"]
        if self._network.has_network:
            command += ["--dashboard-host=0.0.0.0"]
        else:  # the ports of all machines are those of one host
            command += [f"--temp-dir={self._network.folder / 'ray'}", f"--dashboard-agent-listen-port={free_port()}"]
            command += ["--dashboard-host=127.0.0.1", "--min-worker-port=0", "--max-worker-port=0"]
        self.head = self._start(number, self._of_node(number, cpus, command))
        self.wait_for(lambda: self._is_node_up(self.head))
        return self.head

    def add(self, number: int, cpus: int) -> Machine:
        """Starts a machine that joins the cluster; does not wait for it."""
        assert self.head is not None
        head = f"{self.head.address}:{self._port}"
        if self._network.has_network:
            return self._start(number, self._of_node(number, cpus, [*RAY_START, f"--address={head}"]))
        script = str(Path(__file__).with_name("loopback_node.py"))
        return self._start(number, [sys.executable, script, head, self._name(number), str(cpus), MEMORY, OBJECTS])

    def _of_node(self, number: int, cpus: int, command: list[str]) -> list[str]:
        room = [f"--num-cpus={cpus}", f"--memory={MEMORY}", f"--object-store-memory={OBJECTS}"]
        return [
            *command,
            *room,
            f"--node-name={self._name(number)}",
            f"--node-ip-address={self._network.address(number)}",
        ]

    def _name(self, number: int) -> str:
        """Ray's name of the next machine that is started: one that comes back is another one for Ray."""
        return f"machine-{number}-start-{self._starts + 1}"

    def _start(self, number: int, command: list[str]) -> Machine:
        environment = {**self.environment, "MANYGATE_MACHINE": str(number)}
        machine = self._network.start(number, command, environment)
        self.machines[number] = machine
        self._node_names[machine] = self._name(number)
        self._starts += 1
        return machine

    def ensure(self, cpus: Mapping[int, int]) -> None:
        """Makes a cluster of a head without CPUs and of these machines, by their number, and of no others."""
        if self.head is None or not self.head.is_up():
            self.start_head()
        wanted = [self.head, *(self.machines.get(number) for number in cpus)]
        for machine in self.machines.values():
            if machine not in wanted and machine.is_up():
                machine.power_cut()
        for number, count in cpus.items():
            if number not in self.machines or not self.machines[number].is_up():
                self.add(number, count)
        self.wait_for_machines(*cpus)

    def lose_all(self) -> None:
        """Ends the cluster: every machine is lost, and the next one that is started is a new head."""
        for machine in self.machines.values():
            if machine.is_up():
                machine.power_cut()

    def wait_for_machines(self, *numbers: int) -> None:
        """Waits until these machines have joined."""
        self.wait_for(lambda: all(self._is_node_up(self.machines[number]) for number in numbers))

    def wait_for(self, condition: Callable[[], bool], seconds: float = START_S) -> None:
        wait_for(condition, seconds, self.describe)

    def describe(self) -> str:
        ends = [f"{m.name}: {m.log.read_text(errors='replace')[-600:]}" for m in self.machines.values()]
        return "\n".join(ends)

    def _is_node_up(self, machine: Machine | None) -> bool:
        assert machine is not None and machine.is_up(), self.describe()
        return self.has(machine)

    def has(self, machine: Machine) -> bool:
        """Whether a machine is up and the head has not given it up, as it does after a long pause."""
        names = {node.name for node in self.nodes() if node.is_alive}
        return machine.is_up() and self._node_names[machine] in names

    def nodes(self) -> list[Node]:
        """The machines that the head knows; none while it does not answer."""
        try:
            found = self._get("/api/v0/nodes?limit=1000&detail=1")["data"]["result"]["result"]
        except OSError:
            return []
        return [Node(node["node_id"], node["node_name"], node["state"] == "ALIVE") for node in found]

    def node_of(self, machine: Machine) -> Node:
        return next(node for node in self.nodes() if node.is_alive and node.name == self._node_names[machine])

    def drain(self, machine: Machine, seconds: int) -> None:
        """Announces that a machine will be taken away, as the notice of a spot instance does."""
        assert self.head is not None
        node = ["--node-id", self.node_of(machine).id, "--address", f"{self.head.address}:{self._port}"]
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken away by a test"]
        deadline = ["--deadline-remaining-seconds", str(seconds)]
        command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", *node, *reason, *deadline]
        self.head.run(command, {**self.environment, "HOME": "/home/ray"})

    def submit(self, project: Path, *arguments: str) -> "Command":
        """Sends a job from this host and follows it, as a user outside the cluster does."""
        self._commands += 1
        command = [sys.executable, "-m", "jobs.cli", "submit", *arguments, "--address", self.dashboard, "--follow"]
        log = self._folder / f"command-{self._commands}-{arguments[0]}.log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        return Command(command, project, {**environment, **self._outside(), **self._store}, log)

    def _get(self, path: str) -> Any:
        request = urllib.request.Request(self.dashboard + path, headers={"Authorization": f"Bearer {self._token}"})
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    def hold(self, step: int) -> None:
        """Makes the first worker wait after a step; see `release`."""
        write_whole(self.records / "hold", str(step))

    def release(self) -> None:
        (self.records / "hold").unlink(missing_ok=True)

    def records_of(self, run: str) -> Records:
        return Records(self.records / run)

    def wait_until_held(self, run: str, step: int, command: "Command") -> None:
        """Waits until the first worker of a run has made a step, after which it is held."""

        def is_held() -> bool:
            assert command.process.poll() is None, command.output()
            return self.records_of(run).last_step() >= step

        wait_for(is_held, 2 * START_S, lambda: command.output() + self.describe())


class Command:
    """A running command, with its output in a file."""

    def __init__(self, command: list[str], folder: Path, environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def end(self, seconds: float) -> int:
        """Waits for the end, and returns the exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.log.name} took more than {seconds} s:\n{self.output()}") from None

    def until_printed(self, text: str, seconds: float = START_S) -> None:
        """Waits until the command has printed a text."""

        def is_printed() -> bool:
            printed = self.output()
            assert text in printed or self.process.poll() is None, f"ended before {text!r}:\n{printed}"
            return text in printed

        wait_for(is_printed, seconds, self.output)


def wait_for(condition: Callable[[], bool], seconds: float, describe: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s:\n{describe()}"
        time.sleep(POLL_S)


def write_whole(path: Path, text: str) -> None:
    """Writes a file that readers see whole or not at all."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def free_port() -> int:

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
