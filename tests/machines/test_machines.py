"""The machines of these tests are separate, are lost at once, and leave nothing behind."""

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.machines.machines import NamespaceMachine, Namespaces, can_have_namespaces, links, namespaces
from tests.machines.ray_cluster import wait_for
from tests.workers import fork

pytestmark = pytest.mark.skipif(not can_have_namespaces(), reason="needs root, iproute2 and util-linux")
SLEEP = ["sleep", "1000"]
ENVIRONMENT = {"PATH": os.environ["PATH"]}


def can_connect(machine: NamespaceMachine, other: NamespaceMachine) -> bool:
    """Whether a machine gets an answer from another one, here a refusal of its port."""
    code = (
        "import socket; probe = socket.socket(); probe.settimeout(1); "
        f"print(probe.connect_ex(({other.address!r}, 9)) == __import__('errno').ECONNREFUSED)"
    )
    return machine.run([sys.executable, "-c", code], ENVIRONMENT).strip() == "True"


def test_machines_share_nothing_but_a_network(tmp_path: Path) -> None:
    network = Namespaces(tmp_path, [Path(sys.prefix), Path(sys.base_prefix)])
    try:
        one, two = network.start(1, SLEEP, ENVIRONMENT), network.start(2, SLEEP, ENVIRONMENT)
        for machine in (one, two):
            wait_for(lambda of=machine: is_ready(of), 30, machine.log.read_text)
        assert one.run(["hostname"], ENVIRONMENT) == "machine-1\n"
        assert one.run(["cat", "/etc/hosts"], ENVIRONMENT) == "127.0.0.1 localhost\n127.0.1.1 machine-1\n"
        one.run(["touch", "/tmp/mine", "/dev/shm/mine", "/home/ray/mine"], ENVIRONMENT)
        assert two.run(["find", "/tmp", "/dev/shm", "/home", "-name", "mine"], ENVIRONMENT) == ""
        assert two.run(["ps", "-e", "-o", "comm="], ENVIRONMENT).split().count("sleep") == 1
        assert can_connect(one, two)
        two.unplug()
        assert not can_connect(one, two)
        two.plug()
        assert can_connect(one, two)
        one.lose_sight_of(two)
        assert not can_connect(one, two) and not can_connect(two, one)
        one.see_again(two)
        assert can_connect(one, two)
        one.power_cut()
        assert not one.is_up() and not one.processes() and two.is_up()
        again = network.start(1, SLEEP, ENVIRONMENT)
        assert again.address == one.address and again.is_up()
    finally:
        network.close()
    assert not two.is_up()


def is_ready(machine: NamespaceMachine) -> bool:
    """Whether the machine is set up, so that it runs its command."""
    return any(process.name() == SLEEP[0] for process in machine.processes())


def test_what_a_killed_run_leaves_is_removed_by_the_next(tmp_path: Path) -> None:
    process = fork(start_and_wait, tmp_path)
    ours = f"mg{process.pid:x}n"
    wait_for(lambda: len([name for name in links() if name.startswith(ours)]) == 2, 30, lambda: "no machine")
    process.kill()
    process.join()
    assert any(name.startswith(ours) for name in namespaces())
    Namespaces(tmp_path, []).close()
    assert not [name for name in [*namespaces(), *links()] if name.startswith(ours)]


def start_and_wait(folder: Path) -> None:
    Namespaces(folder, []).start(1, SLEEP, ENVIRONMENT)
    signal.pause()
