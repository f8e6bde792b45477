"""The sentence about a failed group of workers, from exceptions as Ray Train 2.60 raises them."""

import re

import pytest
import torch.distributed as dist
from ray.exceptions import ActorDiedError, ActorUnavailableError, NodeDiedError, OutOfMemoryError, RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from pipeline.errors import UserError
from pipeline.workers.failures import describe_failure, final_error

# As they were raised by runs whose worker was killed.
GLOO = [
    "[/__w/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:57748. This "
    "is typically caused by a remote worker crashing. Check the logs of the remote worker before reporting. GLHF!",
    "[/__w/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:60580: Connection reset by "
    "peer. This is typically caused by a remote worker hanging or bugs in the application. GLHF!",
    "[/__w/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1800000ms for recv",
]
DEATH = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: RayTrainWorker\n\tpid: 13590\n"
    "\tip: 10.0.0.5\nThe actor is dead because {}"
)
CRASHED = (
    "its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a "
    "connection error code 2. End of file. Some common causes include: (1) the process was killed by the OOM killer"
)
INFO = "A worker health check failed.\nWorker info: Worker(\n  metadata=ActorMetadata(\n    {}\n  ),\n)"
KILLED = "the process was killed, most likely for lack of memory, or it crashed"
TRACE = '[Rank 0 Error Snippet]:\nTraceback (most recent call last):\n  File "run.py", line 63, in train_on_worker'


def group(*failures: Exception) -> WorkerGroupError:
    return WorkerGroupError(TRACE, dict(enumerate(failures)))


def checked(failure: Exception, address: str = "10.0.0.5") -> WorkerHealthCheckFailedError:
    return WorkerHealthCheckFailedError(INFO.format(f"node_ip='{address}',"), failure)


def died(why: str = CRASHED) -> ActorDiedError:
    error = ActorDiedError()
    error.error_msg = DEATH.format(why)
    return error


LOST = [
    (group(checked(died()), RuntimeError(GLOO[0])), f"worker 0 on 10.0.0.5 ended: {KILLED}"),
    (group(RuntimeError(GLOO[1]), died()), f"worker 1 on 10.0.0.5 ended: {KILLED}"),
    (group(checked(died()), checked(died(), "10.0.0.6")), f"workers 0, 1 on 10.0.0.5, 10.0.0.6 ended: {KILLED}"),
    (
        group(checked(died()), checked(OutOfMemoryError("Task was killed due to the node running low on memory.\nIt"))),
        "worker 1 on 10.0.0.5 ended: Ray killed it, because its machine ran out of memory",
    ),
    (
        group(checked(died("its node has died. Node Id: 4f")), RuntimeError(GLOO[0])),
        "worker 0 on 10.0.0.5 ended: its machine was lost",
    ),
    (group(NodeDiedError("The node died.")), "worker 0 ended: its machine was lost"),
    (
        group(RuntimeError(GLOO[0]), checked(ActorUnavailableError("rpc failed", None))),
        "worker 1 on 10.0.0.5 ended: it no longer answers",
    ),
    (group(WorkerHealthCheckTimeoutError("It has been hanging.")), "worker 0 ended: it no longer answers"),
    (
        group(*(RuntimeError(text) for text in GLOO)),
        "workers 0, 1, 2 ended: it lost the connection to another worker",
    ),
    (
        group(*(dist.DistNetworkError("The client socket has failed to connect") for _ in range(12))),
        "workers 0, 1, 2, 3, 4, 5, 6, 7, ... (12 in total) ended: it lost the connection to another worker",
    ),
]


@pytest.mark.parametrize(("error", "sentence"), LOST)
def test_lost_workers_are_one_sentence_and_at_last_a_user_error(error: WorkerGroupError, sentence: str) -> None:
    assert describe_failure(error) == sentence
    last = final_error(error, 3)
    assert isinstance(last, UserError)
    assert re.match(
        r"Training ended, with no restart left \(training.max_restarts is 3\), because worker.* ended: ", str(last)
    )
    assert "cluster.memory_per_worker" in str(last) and "\n" not in str(last) and "Snippet" not in str(last)


OTHERS = [
    (group(ValueError("no such row\nmore"), RuntimeError(GLOO[0])), "worker 0 failed: ValueError: no such row"),
    (
        group(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), checked(died())),
        "worker 0 failed: RuntimeError: mat1 and mat2 shapes cannot be multiplied; "
        f"worker 1 on 10.0.0.5 ended: {KILLED}",
    ),
    (ControllerError(RayActorError(error_msg="The actor experienced\nan error")), "The actor experienced"),
]


@pytest.mark.parametrize(("error", "sentence"), OTHERS)
def test_an_unexpected_exception_is_named_and_keeps_its_traceback(error: Exception, sentence: str) -> None:
    assert describe_failure(error) == sentence
    assert final_error(error, 3) is error


def test_a_user_error_of_a_worker_is_raised_as_it_is() -> None:
    error = group(RuntimeError(GLOO[0]), UserError("The store does not answer. Try again."))
    assert describe_failure(error) == "worker 1 failed: The store does not answer. Try again"
    assert str(final_error(error, 3)) == "The store does not answer. Try again."
    raised = RuntimeError("a wrapper")
    raised.__cause__ = UserError("wrapped")
    assert str(final_error(group(raised), 3)) == "wrapped"
