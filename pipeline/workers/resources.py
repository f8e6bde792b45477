"""What the workers of a run agree on about their machines, wherever each of them was placed."""

from collections import Counter
from dataclasses import dataclass

from pipeline import machine
from pipeline.config.cluster import ClusterConfig


@dataclass(frozen=True)
class OwnMachine:
    """A worker's machine, as the worker finds it."""

    identity: str  # equal for the workers of one machine
    cpus: int
    memory: int  # bytes
    device_memory: int | None  # bytes of this worker's GPU; None on CPU


@dataclass(frozen=True)
class Resources:
    """What each worker of a run has: the same for all, so that they make the same decisions."""

    local_workers: int  # on every machine, with consecutive ranks; 1 if machines have different numbers
    threads: int
    memory: int  # bytes
    device_memory: int | None  # bytes of its GPU; None on CPU


def own_machine(device_memory: int | None) -> OwnMachine:
    """The machine of this process."""
    return OwnMachine(machine.identity(), machine.cpus().amount, machine.memory().amount, device_memory)


def common_resources(machines: list[OwnMachine], cluster: ClusterConfig) -> Resources:
    """What every worker has: the least of what any of them has.

    Args:
        machines: of each worker, in order of rank.
        cluster: what a worker reserves.
    """
    sharing = Counter(own.identity for own in machines)
    memory = min(own.memory // sharing[own.identity] for own in machines)
    device_memory = [own.device_memory for own in machines if own.device_memory is not None]
    return Resources(
        local_workers=_local_workers([own.identity for own in machines]),
        threads=cluster.cpus_per_worker or max(1, min(own.cpus // sharing[own.identity] for own in machines)),
        memory=min(memory, cluster.memory_per_worker or memory),
        device_memory=min(device_memory, default=None),
    )


def _local_workers(identities: list[str]) -> int:
    sharing = Counter(identities)
    count = sharing[identities[0]]
    firsts = [identity for identity in identities[::count] for _ in range(count)]
    is_even = set(sharing.values()) == {count} and firsts == identities
    return count if is_even else 1
