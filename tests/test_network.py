"""Which interface workers use, and what they report if one of them cannot be reached."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist

from pipeline.errors import UserError
from pipeline.workers import network
from pipeline.workers.interface import interface_of, own_address
from tests.workers import fork

NEW_NETWORK = 0x40000000  # CLONE_NEWNET
GUARD_S = 90  # above the time limits of the checks themselves


def test_interface_of_every_address_of_this_machine() -> None:
    known = {
        address.address.partition("%")[0]: {name for name, others in psutil.net_if_addrs().items() if address in others}
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family.name in ("AF_INET", "AF_INET6")
    }
    assert "127.0.0.1" in known
    for address, names in known.items():
        assert interface_of(address) in names


def test_addresses_of_the_loopback_network_have_its_interface() -> None:
    assert interface_of("127.0.1.1") == "lo"  # of Debian's /etc/hosts; no interface lists it


def test_an_address_of_another_machine_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"has the address 203\.0\.113\.9, .*its interfaces: .*lo.*--node-ip-address"):
        interface_of("203.0.113.9")


def test_the_first_workers_own_name_may_resolve_to_the_loopback_interface() -> None:
    """Then the address is that of the route to other networks, and the same as that towards such a network."""
    assert own_address("127.0.1.1") == own_address("no-such-host.invalid") == own_address("192.0.2.1")
    assert interface_of(own_address("127.0.1.1"))


def test_an_unreachable_machine_is_reported_within_a_minute() -> None:
    assert network.CONNECT_S + network.AGREE_S <= 60


def check(rank: int, address: str, folder: Path) -> None:
    """A worker of two, which writes what it has found."""
    store = dist.FileStore(str(folder / "store"), 2)
    try:
        network.check_reachable(store, rank, 2, address)
        found = "reachable"
    except network.UnreachableError as error:
        found = str(error)
    (folder / f"{rank}.txt").write_text(found)
    store.add("done", 1)
    store.wait(["done"])


def check_in_own_network(rank: int, address: str, folder: Path) -> None:
    """The same on another network, which nothing connects with the first worker's."""
    assert ctypes.CDLL(None, use_errno=True).unshare(NEW_NETWORK) == 0
    for command in ("ip link set lo up", f"ip address add {address}/32 dev lo"):
        subprocess.run(command.split(), check=True)
    check(rank, address, folder)


def announce_closed_port(folder: Path) -> None:
    """A worker whose port is closed, as by a firewall that rejects connections."""
    store = dist.FileStore(str(folder / "store"), 2)
    listener = network.listen_on("127.0.0.2")
    port = listener.getsockname()[1]
    listener.close()
    store.set("at/1", f"127.0.0.2 {port}")
    store.set("reached/1", "")
    (folder / "1.txt").write_text(store.get("reached/0").decode())


def found_by(folder: Path, *processes: object) -> list[str]:
    for process in processes:
        process.join(GUARD_S)  # type: ignore[attr-defined]
        assert process.exitcode == 0  # type: ignore[attr-defined]
    return [(folder / f"{rank}.txt").read_text() for rank in range(2)]


def test_workers_that_reach_each_other(tmp_path: Path) -> None:
    """Two addresses of the loopback network stand for two machines."""
    one, two = (fork(check, rank, f"127.0.0.{rank + 1}", tmp_path) for rank in range(2))
    assert found_by(tmp_path, one, two) == ["reachable"] * 2


def test_a_closed_port_is_one_sentence(tmp_path: Path) -> None:
    one, two = fork(check, 0, "127.0.0.1", tmp_path), fork(announce_closed_port, tmp_path)
    found, announced = found_by(tmp_path, one, two)
    assert found == announced  # on every worker
    assert found.startswith("Worker 0 on 127.0.0.1 cannot connect to worker 1 on 127.0.0.2 ([Errno 111] Connection re")
    assert "workers need all ports above 1024 between each other. Open them in the firewall, or start Ray on" in found


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2")
def test_a_machine_on_another_network_is_one_sentence_on_both(tmp_path: Path) -> None:
    one, two = fork(check, 0, "127.0.0.1", tmp_path), fork(check_in_own_network, 1, "198.51.100.7", tmp_path)
    found = found_by(tmp_path, one, two)
    assert found[0] == found[1]
    assert found[0].startswith("Worker 0 on 127.0.0.1 cannot connect to worker 1 on 198.51.100.7 (")
