"""The machines of the Ray cluster that this process has joined."""

import ipaddress
from collections.abc import Iterable, Mapping

import ray


def room_for(needed: Mapping[str, float], machines: Iterable[Mapping[str, float]]) -> int:
    """How many tasks or workers fit, each of them on one machine.

    Args:
        needed: resources of a task or worker, such as CPU, GPU and memory.
        machines: resources of each machine.
    """
    return sum(
        int(min(machine.get(name, 0) // amount for name, amount in needed.items() if amount)) for machine in machines
    )


def is_alone() -> bool:
    """Whether no machine can join, because Ray listens on the loopback interface only."""
    return ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback
