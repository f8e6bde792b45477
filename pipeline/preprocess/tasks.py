"""Runs a function on many small work items with Ray: the only module of this stage that imports Ray."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import ray

from pipeline.errors import UserError
from pipeline.preprocess.units import Unreadable
from pipeline.secret_files import check_secrets

Item = dict[str, Any]
"""The work of one task, as plain JSON."""

TASKS_PER_CPU = 4
"""Tasks submitted to Ray per CPU of the cluster, so that no CPU waits for its next task."""


@dataclass(frozen=True)
class Done:
    """A finished task."""

    item: Item
    result: dict[str, Any]
    unreadable: str | None  # why its file cannot be read; in this case the result is empty


def run_tasks(task: Callable[[Item, Any], dict[str, Any]], items: list[Item], shared: Any) -> Iterator[Done]:
    """Runs ``task(item, shared)`` for every item, each in its own Ray task, and yields results as they finish.

    Args:
        task: a module-level function. It may run twice if a machine is lost.
        shared: sent to each machine once; Arrow data in it is not copied for each worker.

    Raises:
        UserError: as raised by the task. (Ray would wrap it, so the task returns such errors as results.)
    """
    if not items:
        return
    reference = ray.put((task, shared))
    waiting: dict[ray.ObjectRef[Any], Item] = {}
    left = iter(items)
    try:
        while True:
            room = TASKS_PER_CPU * int(ray.cluster_resources().get("CPU", 1)) - len(waiting)
            for item in islice(left, max(room, 0)):
                waiting[_perform.remote(reference, item)] = item
            if not waiting:
                return
            finished, _ = ray.wait(list(waiting))
            for done in finished:
                yield _outcome(waiting.pop(done), ray.get(done))
    finally:
        for pending in waiting:
            ray.cancel(pending)


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
