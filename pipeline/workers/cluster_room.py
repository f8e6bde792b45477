"""The room for workers on a Ray cluster whose machines come and go: waiting for it, and watching it during a run."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

import ray
from ray._private.state import available_resources_per_node, state, total_resources_per_node
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup

from pipeline.config.lanes import possible_workers
from pipeline.errors import UserError
from pipeline.ray_machines import is_alone, room_for
from pipeline.workers.stop import InterruptedRunError, Stop, StopSignal

log = logging.getLogger(__name__)

SETTLE_S = 15  # time for workers that have just ended to free their CPUs
REMIND_S = 60
LOOK_S = 2.0  # between two looks at the machines
START_S = 0.5


@dataclass(frozen=True)
class WorkerDemand:
    """The workers that a run wants."""

    fewest: int
    most: int
    lanes: int  # of the feature table; the workers must divide them
    resources: Mapping[str, float]  # of one worker, such as CPU, GPU, memory
    strategy: str  # PACK or SPREAD, of placement groups

    def useful(self, room: int) -> int | None:
        """The largest number of workers that fits and divides the lanes; None if there is room for too few."""
        counts = [n for n in possible_workers(self.lanes) if self.fewest <= n <= min(room, self.most)]
        return max(counts, default=None)

    def fewer(self, room: int) -> str:
        """What to type to start as many workers as there is room for; empty if there is none for a single worker."""
        most = max((n for n in possible_workers(self.lanes) if n <= room), default=None)
        return "" if most is None else f"--workers {most}"

    def next_after(self, workers: int) -> int | None:
        """The next larger number of workers that divides the lanes."""
        return min((n for n in possible_workers(self.lanes) if workers < n <= self.most), default=None)

    def room(self, machines: Mapping[str, Mapping[str, float]]) -> int:
        """How many workers fit, by the resources of each machine."""
        return room_for(self.resources, machines.values())

    def reserve(self, workers: int) -> PlacementGroup:
        """Asks Ray for the room of some workers. An autoscaler starts machines for it."""
        return placement_group([dict(self.resources)] * workers, strategy=self.strategy)

    def in_words(self, workers: int) -> str:
        needs = ", ".join(f"{amount * workers:g} {name}" for name, amount in self.resources.items() if amount)
        return f"{workers} workers need {needs}"


def staying(machines: Mapping[str, Mapping[str, float]]) -> Mapping[str, Mapping[str, float]]:
    """Without the machines that are being taken away."""
    leaving = state.get_draining_nodes()
    return {node: resources for node, resources in machines.items() if node not in leaving}


def wait_for_room(demand: WorkerDemand, is_first: bool, stop: StopSignal) -> int:
    """Waits until the cluster has room for workers; returns their number.

    Raises:
        UserError: before the first start, on a Ray of this machine alone: no machine can join it.
        InterruptedRunError: a SIGTERM arrived.
    """
    began, reminded = time.monotonic(), 0.0
    reserved: PlacementGroup | None = None
    if is_first and demand.useful(demand.room(total_resources_per_node())) is None and is_alone():
        raise UserError(too_few(demand))
    try:
        while not stop.is_for_good:
            if reserved is not None and is_reserved(reserved):
                remove_placement_group(reserved)
                reserved = None
            now = time.monotonic()
            total = demand.useful(demand.room(staying(total_resources_per_node())))
            free = demand.useful(demand.room(staying(available_resources_per_node())))
            if free is not None and (free == total or now - began > SETTLE_S):
                return free
            if reserved is None and free is None and (total is None or now - began > SETTLE_S):
                reserved = demand.reserve(demand.fewest)
            if reserved is not None and now - reminded > REMIND_S:
                reminded = now
                log.info("%s", waiting(demand, total, is_first))
            stop.wait(START_S)
    finally:
        if reserved is not None:
            remove_placement_group(reserved)
    raise InterruptedRunError


def is_reserved(group: PlacementGroup) -> bool:
    return bool(placement_group_table(group)["state"] == "CREATED")


def address_of(node: str) -> str:
    return next((str(known["NodeManagerAddress"]) for known in ray.nodes() if known["NodeID"] == node), node)


def too_few(demand: WorkerDemand) -> str:
    room = demand.room(total_resources_per_node())
    fewer = demand.fewer(room)
    return (
        f"{demand.in_words(demand.fewest)}; the Ray of this machine has room for {room}: use {fewer}{fewer and ', '}"
        "smaller values in `cluster`, another training.device, or a cluster with more machines."
    )


def waiting(demand: WorkerDemand, total: int | None, is_first: bool) -> str:
    """What a run waits for; `total` is the number of workers for which all machines together have room."""
    wanted = demand.in_words(demand.fewest)
    if total is not None:
        # Ray does not say who uses a machine: workers that it has killed may take a while to end.
        users = "other jobs" if is_first else "other jobs, or workers of this run's last start that have not ended,"
        return f"Waiting: {wanted}, which {users} are using. `manygate status` lists the jobs."
    room = demand.room(staying(total_resources_per_node()))
    advice = demand.fewer(room) or "smaller values in `cluster`"
    return (
        f"Waiting for machines: {wanted}; the cluster has room for {room}. An autoscaler has been asked for them. "
        f"If none will come, stop this job and use {advice}."
    )


class GroupWatch:
    """Watches the machines of a running group: those that are being taken away, and room for more workers."""

    def __init__(self, demand: WorkerDemand, workers: int, own_stop: StopSignal) -> None:
        """Prepares to watch.

        Args:
            demand: of the run.
            workers: of the group.
            own_stop: of the driver, which ends for good when its own machine is taken away.
        """
        self._demand = demand
        self._workers = workers
        self._own_stop = own_stop
        self._looked = 0.0
        self._level = Stop.NONE
        self._own_node = ray.get_runtime_context().get_node_id()
        self._leaving: set[str] = set()  # machines that are known to be taken away
        self._more = demand.next_after(workers)
        self._reserved: PlacementGroup | None = None

    def look(self, nodes: Mapping[int, str]) -> Stop:
        """How soon the workers should stop, to start again on other machines.

        Args:
            nodes: rank of each worker that is up -> id of its machine.
        """
        if time.monotonic() - self._looked > LOOK_S:
            self._looked = time.monotonic()
            self._look_for_leaving({*nodes.values()})
            # Not before all workers are up: the reservation would take the room that they are waiting for.
            if self._more is not None and len(nodes) == self._workers:
                self._look_for_growth(self._more)
        return self._level

    def close(self) -> None:
        """Frees the room that was reserved for more workers."""
        if self._reserved is not None:
            remove_placement_group(self._reserved)

    def _look_for_leaving(self, nodes: set[str]) -> None:
        leaving = state.get_draining_nodes()
        for node in leaving.keys() & (nodes | {self._own_node}) - self._leaving:
            self._leaving.add(node)
            left = f" in {max(leaving[node] / 1000 - time.time(), 0):.0f} s" if leaving[node] else ""
            machine = f"The machine {address_of(node)} is being taken away{left}: the run saves a checkpoint and"
            if node == self._own_node:
                log.warning("%s ends, because its driver is there.", machine)
                self._own_stop.request()
            else:
                log.warning("%s continues elsewhere.", machine)
                self._level = max(self._level, Stop.AFTER_STEP)

    def _look_for_growth(self, more: int) -> None:
        if self._reserved is None:
            self._reserved = self._demand.reserve(more - self._workers)
        elif self._level == Stop.NONE and is_reserved(self._reserved):
            log.info("There is room for %d workers: they start again at the next checkpoint.", more)
            self._level = Stop.AT_SAVE
