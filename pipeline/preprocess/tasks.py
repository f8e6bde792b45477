"""Runs a function on many small work items with Ray: the only module of this stage that imports Ray."""

import ipaddress
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import ray

from pipeline.errors import UserError
from pipeline.preprocess.units import Unreadable
from pipeline.secret_files import check_secrets
from pipeline.sizes import in_bytes

log = logging.getLogger(__name__)

Item = dict[str, Any]
"""The work of one task, as plain JSON."""

TASKS_PER_CPU = 4
"""Tasks submitted to Ray per task that can run, so that no CPU waits for its next task."""


@dataclass(frozen=True)
class Done:
    """A finished task."""

    item: Item
    result: dict[str, Any]
    unreadable: str | None  # why its file cannot be read; in this case the result is empty


def run_tasks(
    task: Callable[[Item, Any], dict[str, Any]], items: list[Item], shared: Any, memory: int | None = None
) -> Iterator[Done]:
    """Runs ``task(item, shared)`` for every item, each in its own Ray task, and yields results as they finish.

    Args:
        task: a module-level function. It may run twice if a machine is lost.
        shared: sent to each machine once; Arrow data in it is not copied for each worker.
        memory: bytes that each task reserves.

    Raises:
        UserError: as raised by the task. (Ray would wrap it, so the task returns such errors as results.)
    """
    if not items:
        return
    check_memory(memory)
    perform = _perform.options(memory=memory)
    reference = ray.put((task, shared))
    waiting: dict[ray.ObjectRef[Any], Item] = {}
    left = iter(items)
    try:
        while True:
            room = TASKS_PER_CPU * max(tasks_at_once(memory), 1) - len(waiting)
            for item in islice(left, max(room, 0)):
                waiting[perform.remote(reference, item)] = item
            if not waiting:
                return
            finished, _ = ray.wait(list(waiting))
            for done in finished:
                yield _outcome(waiting.pop(done), ray.get(done))
    finally:
        for pending in waiting:
            ray.cancel(pending)


def tasks_at_once(memory: int | None) -> int:
    """How many tasks the machines of the cluster can run at the same time, if each reserves so much memory."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(
        int(min(machine.get("CPU", 0), machine.get("memory", 0) // memory if memory else math.inf))
        for machine in machines
    )


def check_memory(memory: int | None) -> None:
    """Checks that some machine has the memory of a task. Of a cluster, a machine may still come, and is waited for.

    Raises:
        UserError: no machine of a Ray that no other machine can join has so much.
    """
    if memory is None or tasks_at_once(memory) > 0:
        return
    largest = max(node["Resources"].get("memory", 0) for node in ray.nodes())
    found = f"cluster.memory_per_task is {in_bytes(memory)}, and no machine of the Ray cluster has more than"
    if ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback:
        raise UserError(f"{found} {in_bytes(largest)}: use a smaller value, or a cluster with larger machines.")
    log.warning("Waiting for a machine: %s %s. If none will come, use a smaller value.", found, in_bytes(largest))


def _outcome(item: Item, result: dict[str, Any] | UserError | Unreadable) -> Done:
    if isinstance(result, UserError):
        raise result
    if isinstance(result, Unreadable):
        return Done(item, {}, str(result))
    return Done(item, result, None)


@ray.remote
def _perform(work: tuple[Callable[[Item, Any], dict[str, Any]], Any], item: Item) -> Any:
    task, shared = work
    try:
        check_secrets()
        return task(item, shared)
    except (UserError, Unreadable) as error:
        return error
