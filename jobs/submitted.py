"""`manygate status`, `logs` and `stop`: jobs that were sent to a Ray cluster."""

import logging
import sys
import time
from typing import TYPE_CHECKING, Any

from cluster.client import STOP_WAIT_S, follow, open_client, readable_errors
from cluster.job_screen import JobState, LogText, read_log, screen, when
from cluster.job_state import describe_ending

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

log = logging.getLogger(__name__)


def watch(client: "JobSubmissionClient", name: str, url: str, as_json: bool = False) -> int:
    """Prints a job's log until it ends. An interrupt stops the printing, not the job."""
    text = LogText(as_json)
    try:
        code = follow(client, name, lambda piece: print(text.add(piece), end="", flush=True))
        print(text.end(), end="", flush=True)
    except KeyboardInterrupt:
        print(
            f"\n{name} is still running. To watch it again: manygate logs {name} --address {url} --follow\n"
            f"To stop it: manygate stop {name} --address {url}",
            file=sys.stderr,
        )
        return 130
    log.info("%s: %s", name, describe_ending(client.get_job_info(name)))
    return code


def status(job: str | None, address: str | None) -> int:
    """Prints a job on one screen, see `screen`, or one line per job of the cluster."""
    client = open_client(address)
    with readable_errors(client.get_address(), job):
        if job is None:
            jobs = [details for details in client.list_jobs() if details.submission_id]
            for details in sorted(jobs, key=lambda details: details.start_time or 0):
                print(f"{details.submission_id:<48} {details.status!s:<10} {when(seconds(details.start_time))}")
            log.info("%d jobs at %s", len(jobs), client.get_address())
            return 0
        state, log_so_far = state_of(job, client.get_job_info(job)), read_log(log_of(client, job))
    print(screen(state, log_so_far, time.time()))
    return 0


def log_of(client: "JobSubmissionClient", job: str) -> str:
    """The log of a job that exists. Its driver's machine has the log, so that it is lost together with the machine."""
    try:
        return client.get_job_logs(job)
    except RuntimeError:
        return "(the machine of the job's driver, which has its log, does not answer)"


def state_of(job: str, details: Any) -> JobState:
    """What Ray's description of a job says."""
    ending = describe_ending(details) if details.status.is_terminal() else None
    times = seconds(details.start_time), seconds(details.end_time)
    return JobState(job, str(details.status), details.entrypoint, *times, ending)


def logs(job: str, address: str | None, follow_log: bool, as_json: bool) -> int:
    """Prints a job's log so far, or follows it until the job ends."""
    client = open_client(address)
    if follow_log:
        return watch(client, job, client.get_address(), as_json)
    with readable_errors(client.get_address(), job):
        log_so_far, text = client.get_job_logs(job), LogText(as_json)
    print(text.add(log_so_far) + text.end(), end="")
    return 0


def stop(job: str, address: str | None) -> int:
    """Stops a job and waits until it has ended: a training job saves its state first."""
    client = open_client(address)
    with readable_errors(client.get_address(), job):
        if not client.stop_job(job):
            log.info("%s had already ended.", job)
            return 0
        if str(client.get_job_status(job)) == "PENDING":  # Ray would answer only when it starts, which may be never
            log.info("%s has not started: it stops at once if it starts, and the cluster gives it up otherwise.", job)
            return 0
        log.info("Stopping %s; it may save its state first (%d s at most).", job, STOP_WAIT_S)
        while not client.get_job_status(job).is_terminal():
            time.sleep(0.5)
        log.info("%s: %s", job, str(client.get_job_status(job)).lower())
    return 0


def seconds(milliseconds: int | None) -> float | None:
    return milliseconds / 1000 if milliseconds else None
