"""What Ray knows about a job that waits or has ended without a result, as one sentence with what to do."""

import signal
from typing import Any

from pipeline.errors import UserError

EXPLANATIONS = {
    "RUNTIME_ENV_SETUP_FAILURE": "The cluster could not set up the job's folder and environment: {reason}. Check the "
    "disks of its machines, then submit again.",
    "JOB_SUPERVISOR_ACTOR_START_TIMEOUT": "The job did not start in the time that the cluster gives it: {reason}. "
    "Check with `ray status` on the head that machines are up and have room, then submit again.",
    "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE": "No machine of the cluster can run the job's first process: {reason}. Check "
    "with `ray status` on the head that its machines are up, then submit again.",
    "JOB_SUPERVISOR_ACTOR_START_FAILURE": "The job's first process could not start: {reason}. Submit again; a training "
    "continues from its last checkpoint.",
    "JOB_SUPERVISOR_ACTOR_DIED": "The process that watches the job died, or its machine did: {reason}. Submit again; a "
    "training continues from its last checkpoint.",
    "JOB_ENTRYPOINT_COMMAND_START_ERROR": "The job's command could not start: {reason}. Check that the cluster's "
    "machines have the environment that `make setup` makes.",
}
"""By Ray's `JobErrorType`."""

UNKNOWN = "The job ended without an exit code: {reason}. Submit again; a training continues from its last checkpoint."
REASON_CHARACTERS = 300


def describe_waiting(job: str, seconds: float) -> str:
    """Why a job has not started yet."""
    return (
        f"{job} has not started after {seconds:.0f} s: the cluster sets up its folder and environment, or no machine "
        f"has room for its first process. `ray status` on the head shows the machines; `manygate stop {job}` "
        "withdraws it."
    )


def describe_ending(details: Any) -> str:
    """How a job has ended; for a job that died, why, and what to do."""
    status, code = str(details.status), details.driver_exit_code
    if status != "FAILED":
        return f"{status.lower()}, exit code {'none' if code is None else code}"
    number = 0 if code is None else -code if code < 0 else code - 128  # a shell adds 128
    if code is not None and number not in set(signal.Signals):
        interrupted = "it was interrupted; submit it again to continue"
        return f"failed, exit code {code}; {interrupted if code == 75 else 'its log says why'}"
    if code is not None:
        name = signal.Signals(number).name
        hint = ", as the kernel does when memory runs out" if name == "SIGKILL" else ""
        return (
            f"failed: its first process was killed by {name}{hint}. Submit again; a training continues from its last "
            "checkpoint."
        )
    explanation = EXPLANATIONS.get(str(details.error_type).rpartition(".")[2], UNKNOWN)
    return f"failed: {explanation.format(reason=last_sentence(details.message))}"


def last_sentence(message: str | None) -> str:
    """The end of a message, which after a traceback is the error itself."""
    lines = [line.strip() for line in (message or "").splitlines() if line.strip()]
    if not lines:
        return "Ray gives no reason"
    is_trace = any(line.startswith("Traceback") for line in lines)
    return lines[-1 if is_trace else 0][:REASON_CHARACTERS].rstrip(".")


def lost_head(url: str, job: str) -> UserError:
    """The error for a head that cannot be reached any more while its job is followed."""
    return UserError(
        f"The cluster at {url} cannot be reached any more, so the log of {job} ends here; the job itself may still be "
        f"running. Check the head, then: manygate logs {job} --address {url} --follow. If the head is gone, submit the "
        "job again: it continues from what is saved."
    )
