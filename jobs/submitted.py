"""`manygate status`, `logs` and `stop`: jobs that were sent to a Ray cluster."""

import logging
import sys
import time
from typing import TYPE_CHECKING

from cluster.client import STOP_WAIT_S, follow, open_client, readable_errors

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

log = logging.getLogger(__name__)


def watch(client: "JobSubmissionClient", name: str, url: str) -> int:
    """Prints a job's log until it ends. An interrupt stops the printing, not the job."""
    try:
        code = follow(client, name)
    except KeyboardInterrupt:
        print(
            f"\n{name} is still running. To watch it again: manygate logs {name} --address {url} --follow\n"
            f"To stop it: manygate stop {name} --address {url}",
            file=sys.stderr,
        )
        return 130
    log.info("%s: %s, exit code %d", name, str(client.get_job_status(name)).lower(), code)
    return code


def status(job: str | None, address: str | None) -> int:
    """Prints the state of a job, or one line per job of the cluster."""
    client = open_client(address)
    with readable_errors(client.get_address(), job):
        if job is None:
            jobs = [details for details in client.list_jobs() if details.submission_id]
            for details in sorted(jobs, key=lambda details: details.start_time or 0):
                print(f"{details.submission_id:<48} {details.status!s:<10} {when(details.start_time)}")
            log.info("%d jobs at %s", len(jobs), client.get_address())
            return 0
        details = client.get_job_info(job)
    print(f"{job}: {details.status}")
    print(f"  command  {details.entrypoint}")
    print(f"  started  {when(details.start_time)}, ended {when(details.end_time)}")
    if details.status.is_terminal():
        code = "none" if details.driver_exit_code is None else details.driver_exit_code
        print(f"  exit code {code}; {(details.message or 'no message').splitlines()[0]}")
    return 0


def logs(job: str, address: str | None, follow_log: bool) -> int:
    """Prints a job's log so far, or follows it until the job ends."""
    client = open_client(address)
    if follow_log:
        return watch(client, job, client.get_address())
    with readable_errors(client.get_address(), job):
        sys.stdout.write(client.get_job_logs(job))
    return 0


def stop(job: str, address: str | None) -> int:
    """Stops a job and waits until it has ended: a training job saves its state first."""
    client = open_client(address)
    with readable_errors(client.get_address(), job):
        if not client.stop_job(job):
            log.info("%s had already ended.", job)
            return 0
        log.info("Stopping %s; it may save its state first (%d s at most).", job, STOP_WAIT_S)
        while not client.get_job_status(job).is_terminal():
            time.sleep(0.5)
        log.info("%s: %s", job, str(client.get_job_status(job)).lower())
    return 0


def when(milliseconds: int | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(milliseconds / 1000)) if milliseconds else "-"
