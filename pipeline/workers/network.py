"""The network of a group of workers: which interface it uses, where its store listens, and who reaches whom.

Without an interface by name, gloo takes the address that the machine's own name resolves to, and NCCL chooses for
itself. On Debian and Ubuntu that name resolves to 127.0.1.1, where no other machine can connect.
"""

import os
import socket
from contextlib import closing
from datetime import timedelta

import torch.distributed as dist

from pipeline.errors import UserError
from pipeline.workers.interface import GLOO_INTERFACE, NCCL_INTERFACE, interface_of

CONNECT_S = 15  # longest wait for a connection to another machine
AGREE_S = 45  # longest wait for what the other workers have found


class UnreachableError(UserError):
    """A machine of the group cannot be reached."""


def use_interface(address: str) -> None:
    """Makes gloo and NCCL use the interface that has an address. Variables that a user has set are kept."""
    if GLOO_INTERFACE in os.environ and NCCL_INTERFACE in os.environ:
        return
    name = interface_of(address)
    os.environ.setdefault(GLOO_INTERFACE, name)
    os.environ.setdefault(NCCL_INTERFACE, f"={name}")  # with `=`, only the interface of exactly this name


def listen_on(address: str) -> socket.socket:
    """A listening socket on this address only, on a free port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family)
    listener.bind((address, 0))
    listener.listen(1024)
    return listener


def serve_store(listener: socket.socket, workers: int) -> dist.TCPStore:
    """The store of a group, on the first worker. By itself, it would listen on all interfaces of the machine."""
    host, port = listener.getsockname()[:2]
    timeout = timedelta(seconds=AGREE_S)
    fd = listener.detach()
    return dist.TCPStore(
        host, port, workers, is_master=True, timeout=timeout, wait_for_workers=False, master_listen_fd=fd
    )


def join_store(host: str, port: int, workers: int, rank: int, address: str) -> dist.TCPStore:
    """The store of a group, on the other workers.

    Raises:
        UnreachableError: the first worker cannot be reached.
    """
    reason = failure_to_connect(host, port)
    if reason is not None:
        raise UnreachableError(unreachable(rank, address, 0, host, reason))
    return dist.TCPStore(host, port, workers, is_master=False, timeout=timedelta(seconds=AGREE_S))


def check_reachable(store: dist.Store, rank: int, workers: int, address: str) -> None:
    """Checks that every worker reaches every machine of the group. Collective.

    Raises:
        UnreachableError: on every worker, with the first pair of machines that do not reach each other.
    """
    with closing(listen_on(address)) as listener:
        store.set(f"at/{rank}", f"{address} {listener.getsockname()[1]}")
        machines: dict[str, tuple[int, int]] = {}  # address -> rank and port of its first worker
        for other in range(workers):
            host, _, text = store.get(f"at/{other}").decode().partition(" ")
            machines.setdefault(host, (other, int(text)))
        problem = ""
        for host, (other, port) in machines.items():
            reason = failure_to_connect(host, port) if host != address else None
            if reason is not None:
                problem = unreachable(rank, address, other, host, reason)
                break
        store.set(f"reached/{rank}", problem)
        for problem in (store.get(f"reached/{other}").decode() for other in range(workers)):
            if problem:
                raise UnreachableError(problem)


def failure_to_connect(host: str, port: int) -> str | None:
    """Why nothing can be sent to a port; None if it answers."""
    try:
        socket.create_connection((host, port), timeout=CONNECT_S).close()
    except OSError as error:
        return str(error)
    return None


def unreachable(rank: int, address: str, other: int, host: str, reason: str) -> str:
    return (
        f"Worker {rank} on {address} cannot connect to worker {other} on {host} ({reason}): workers need all ports "
        "above 1024 between each other. Open them in the firewall, or start Ray on the addresses of a network that "
        "the machines share (ray start --node-ip-address)."
    )
