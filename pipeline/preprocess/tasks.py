"""Runs a function on many small work items with Ray: the only module of this stage that imports Ray."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import ray
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, WorkerCrashedError

from pipeline.errors import UserError, one_line
from pipeline.preprocess.child import KILLED, Crash, call_in_child
from pipeline.preprocess.task_errors import LAST_COLUMN, Unexpected
from pipeline.preprocess.units import Unreadable, part_of_log
from pipeline.ray_machines import is_alone, room_for
from pipeline.secret_files import check_secrets
from pipeline.sizes import in_bytes

log = logging.getLogger(__name__)

Item = dict[str, Any]
"""The work of one task, as plain JSON."""

Work = tuple[Callable[[Item, Any], dict[str, Any]], Any]
"""A task and the data that its items share."""

MORE_MEMORY = (
    "set cluster.memory_per_task, so that fewer tasks run at the same time, use fewer CPUs, or write the log with "
    "smaller row groups."
)

TASKS_PER_CPU = 4
"""Tasks submitted to Ray per task that can run, so that no CPU waits for its next task."""


LOSSES = (NodeDiedError, ObjectLostError, OutOfMemoryError, WorkerCrashedError)
"""How Ray reports that the process or the machine of a task was lost."""

RETRIES = 3
"""How often a lost task is repeated. Ray itself would repeat a task that its memory monitor kills without end."""

MEMORY_RETRIES = 20
"""The same if the memory monitor killed it: other tasks of the machine may end meanwhile."""


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

    A task whose process or machine was lost is repeated. If it is lost every time, a reader that crashes makes its file
    unreadable; lack of memory does not.

    Args:
        task: a module-level function. It may run several times if its process or machine is lost.
        shared: sent to each machine once; Arrow data in it is not copied for each worker.
        memory: bytes that each task reserves.

    Raises:
        UserError: as raised by the task (Ray would wrap it, so the task returns such errors as results), or the task
            had too little memory, it crashed without reading the log, or it failed unexpectedly.
    """
    if not items:
        return
    check_memory(memory)
    perform = _perform.options(memory=memory)
    reference = ray.put((task, shared))
    waiting: dict[ray.ObjectRef[Any], tuple[Item, int]] = {}  # how often it was lost
    left = iter(items)
    try:
        while True:
            room = TASKS_PER_CPU * max(tasks_at_once(memory), 1) - len(waiting)
            for item in islice(left, max(room, 0)):
                waiting[perform.remote(reference, item)] = item, 0
            if not waiting:
                return
            finished, _ = ray.wait(list(waiting))
            for done in finished:
                item, lost = waiting.pop(done)
                try:
                    result = ray.get(done)
                except LOSSES as error:
                    if lost < (MEMORY_RETRIES if isinstance(error, OutOfMemoryError) else RETRIES):
                        waiting[perform.remote(reference, item)] = item, lost + 1
                        continue
                    result = _crash(error, reference, item, memory)
                yield _outcome(item, result)
    finally:
        for pending in waiting:
            ray.cancel(pending)


def tasks_at_once(memory: int | None) -> int:
    """How many tasks the machines of the cluster can run at the same time, if each reserves so much memory."""
    return room_for({"CPU": 1, "memory": memory or 0}, [node["Resources"] for node in ray.nodes() if node["Alive"]])


def check_memory(memory: int | None) -> None:
    """Checks that some machine has the memory of a task. Of a cluster, a machine may still come, and is waited for.

    Raises:
        UserError: no machine of a Ray that no other machine can join has so much.
    """
    if memory is None or tasks_at_once(memory) > 0:
        return
    largest = max(node["Resources"].get("memory", 0) for node in ray.nodes())
    found = f"cluster.memory_per_task is {in_bytes(memory)}, and no machine of the Ray cluster has more than"
    if is_alone():
        raise UserError(f"{found} {in_bytes(largest)}: use a smaller value, or a cluster with larger machines.")
    log.warning("Waiting for a machine: %s %s. If none will come, use a smaller value.", found, in_bytes(largest))


def _crash(error: Exception, reference: ray.ObjectRef[Any], item: Item, memory: int | None) -> Any:
    """How the process of an item ends every time, or its result if it does not."""
    if not isinstance(error, WorkerCrashedError):
        return KILLED
    try:  # the error does not say whether the process was killed or crashed
        return ray.get(_perform_in_child.options(memory=memory).remote(reference, item))
    except LOSSES:  # killed together with its child
        return KILLED


def _outcome(item: Item, result: dict[str, Any] | UserError | Unreadable | MemoryError | Crash | Unexpected) -> Done:
    part = part_of_log(item)
    what = f"The task for {part}" if part is not None else f"A preprocessing task ({item})"
    match result:
        case UserError():
            raise result
        case Unexpected():
            raise result.in_words(what)
        case Unreadable():
            return Done(item, {}, str(result))
        case MemoryError():
            raise UserError(f"{what} had too little memory ({one_line(result)}): {MORE_MEMORY}")
        case Crash() if result.is_killed:
            raise UserError(f"{what} was killed, most likely for lack of memory: {MORE_MEMORY}")
        case Crash() if result.is_fault and part is not None:
            return Done(item, {}, f"its reader crashed ({result}) in {part}")
        case Crash():
            raise UserError(f"{what} crashed ({result}). Run the command again; complete partitions are kept.")
    return Done(item, result, None)


@ray.remote(max_retries=0)
def _perform(work: Work, item: Item) -> Any:
    return _call(work, item)


@ray.remote(max_retries=0)
def _perform_in_child(work: Work, item: Item) -> Any:
    return call_in_child(_call, work, item)


def _call(work: Work, item: Item) -> Any:
    task, shared = work
    LAST_COLUMN.set(None)
    try:
        check_secrets()
        return task(item, shared)
    except (UserError, Unreadable, MemoryError) as error:
        return error
    except Exception as error:  # noqa: BLE001 - raised by `_outcome`
        return Unexpected.of(error)
