"""Runs a function over many small descriptions of work with Ray Data: the only module that imports ray."""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
import ray.data

from pipeline.errors import UserError
from pipeline.preprocess.units import Unreadable

Item = dict[str, Any]
"""What one task works on; plain JSON."""


@dataclass(frozen=True)
class Done:
    """A finished task."""

    item: Item
    result: dict[str, Any]
    unreadable: str | None  # why its file cannot be read; the result is empty then


def run_tasks(task: Callable[[Item, Any], dict[str, Any]], items: list[Item], shared: Any) -> Iterator[Done]:
    """Runs ``task(item, shared)`` for every item, each in one Ray task, and yields results as they finish.

    Args:
        task: a function of a module; gives plain JSON. It may run twice when a machine is lost.
        shared: sent to each machine once; Arrow data in it is not copied for each worker.

    Raises:
        UserError: as the task raised it. (Ray Data would wrap it and lose its cause, so errors travel as results.)
    """
    if not items:
        return
    _quiet_ray_data()
    reference = ray.put((task, shared))

    def perform(row: dict[str, Any]) -> dict[str, Any]:
        function, known = ray.get(reference)
        return {"outcome": json.dumps(_attempt(function, json.loads(row["item"]), known))}

    rows = [{"item": json.dumps(item)} for item in items]
    for row in ray.data.from_items(rows, override_num_blocks=len(rows)).map(perform).iter_rows():
        outcome = json.loads(row["outcome"])
        if "mistake" in outcome:
            raise UserError(outcome["mistake"])
        yield Done(outcome["item"], outcome.get("result", {}), outcome.get("unreadable"))


def _attempt(task: Callable[[Item, Any], dict[str, Any]], item: Item, shared: Any) -> dict[str, Any]:
    try:
        return {"item": item, "result": task(item, shared)}
    except UserError as error:
        return {"mistake": str(error)}
    except Unreadable as error:
        return {"item": item, "unreadable": str(error)}


def _quiet_ray_data() -> None:
    """Progress is shown by us; of Ray Data's messages only errors are."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
