"""Why a group of Ray workers has failed, in one sentence."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch.distributed as dist
from ray.exceptions import ActorDiedError, ActorUnavailableError, NodeDiedError, OutOfMemoryError, WorkerCrashedError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from pipeline.errors import UserError

LOST_MACHINE = "its machine was lost"
OUT_OF_MEMORY = "Ray killed it, because its machine ran out of memory"
DIED = "the process was killed, most likely for lack of memory, or it crashed"
SILENT = "it no longer answers"
DISCONNECTED = "it lost the connection to another worker"

LOSSES = [LOST_MACHINE, OUT_OF_MEMORY, DIED, SILENT, DISCONNECTED]
"""How a worker can be lost, the most likely cause of the others first."""

_BROKEN_CONNECTION = re.compile(
    "(?i)closed by peer|reset by peer|broken pipe|connection refused|connection was likely closed|"
    "gloo.*(timed out|connectFullMesh)|timed out waiting .*ms|remote process exited|socket timeout"
)
_ADDRESS = re.compile(r"node_ip='([^']+)'|^\s*ip: (\S+)", re.MULTILINE)
_NAMED_AT_ONCE = 8


@dataclass(frozen=True)
class _Failure:
    """The failure of a worker; either it is lost, or an exception was raised on it."""

    rank: int
    machine: str | None
    loss: str | None  # of LOSSES
    error: BaseException


def describe_failure(error: BaseException) -> str:
    """Why the workers ended, as one line without a full stop: the exception of a worker, or which workers are lost."""
    if isinstance(error, ControllerError):
        return _first_line(error.controller_failure)
    failures = _failures(error)
    if not failures:
        return _first_line(error)
    raised = [failure for failure in failures if failure.loss is None][:1]
    losses = [failure.loss for failure in failures if failure.loss not in (None, DISCONNECTED)]
    return "; ".join([_raised(failure) for failure in raised] + ([_lost(failures)] if losses or not raised else []))


def final_error(error: BaseException, max_restarts: int) -> BaseException:
    """What to raise when no restart is left: a UserError, unless an unexpected exception was raised on a worker."""
    failures = _failures(error)
    for failure in failures:
        for cause in _causes(failure.error):
            if isinstance(cause, UserError):
                return UserError(*cause.args)
    if not failures or any(failure.loss is None for failure in failures):
        return error
    return UserError(
        f"Training ended, with no restart left (training.max_restarts is {max_restarts}), because "
        f"{describe_failure(error)}. If memory ran out, use fewer workers per machine "
        "(cluster.memory_per_worker reserves memory for each). The same command continues from the last checkpoint."
    )


def _raised(failure: _Failure) -> str:
    kind = "" if isinstance(failure.error, UserError) else f"{type(failure.error).__name__}: "
    return f"worker {failure.rank} failed: {kind}{_first_line(failure.error)}"


def _lost(failures: list[_Failure]) -> str:
    """The workers that were lost in the way that most likely caused the losses of the others."""
    loss = min((failure.loss for failure in failures if failure.loss is not None), key=LOSSES.index)
    lost = [failure for failure in failures if failure.loss == loss]
    machines = list(dict.fromkeys(failure.machine for failure in lost if failure.machine is not None))
    where = f" on {_some(machines)}" if machines else ""
    return f"worker{'s' if len(lost) > 1 else ''} {_some([str(failure.rank) for failure in lost])}{where} ended: {loss}"


def _failures(error: BaseException) -> list[_Failure]:
    """The failures of the workers by rank; none if the group itself has failed."""
    if not isinstance(error, WorkerGroupError):
        return []
    return [_failure(rank, failure) for rank, failure in sorted(error.worker_failures.items())]


def _failure(rank: int, error: BaseException) -> _Failure:
    address = _ADDRESS.search(str(error))
    machine = None if address is None else address[1] or address[2]
    losses = [loss for cause in _causes(error) if (loss := _loss(cause)) is not None]
    return _Failure(rank, machine, losses[0] if losses else None, error)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception, what it contains, and what it was raised from."""
    while error is not None:
        yield error
        contained = error.health_check_failure if isinstance(error, WorkerHealthCheckFailedError) else None
        error = contained or error.__cause__


def _loss(error: BaseException) -> str | None:
    """How the worker was lost; None if the exception says something else. Only its text tells some cases apart."""
    text = str(error)
    match error:
        case OutOfMemoryError():
            return OUT_OF_MEMORY
        case NodeDiedError():
            return LOST_MACHINE
        case ActorDiedError() if not error.actor_init_failed:
            if "low on memory" in text:
                return OUT_OF_MEMORY
            return LOST_MACHINE if re.search("node has died|node was (terminated|lost|preempted)", text) else DIED
        case WorkerCrashedError():
            return DIED
        case ActorUnavailableError() | WorkerHealthCheckTimeoutError():
            return SILENT
        case dist.DistNetworkError() | dist.DistStoreError():
            return DISCONNECTED
        case RuntimeError() if _BROKEN_CONNECTION.search(text):
            return DISCONNECTED
    return None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def _some(names: list[str]) -> str:
    if len(names) <= _NAMED_AT_ONCE:
        return ", ".join(names)
    return f"{', '.join(names[:_NAMED_AT_ONCE])}, ... ({len(names)} in total)"
