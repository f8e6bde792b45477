"""Ray's job server, with its failures put into words."""

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cluster import local_head, tokens
from cluster.connect import reachable
from pipeline.errors import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

RECONNECTS = 5
STOP_WAIT_S = 600
"""How long a job that is stopped may take to save its state; Ray would kill it after 3 seconds."""


def open_client(address: str | None) -> "JobSubmissionClient":
    """A client of the job server at an address such as http://HEAD:8265; without one, of the head started here.

    Raises:
        UserError: nothing answers there, what answers is no Ray, or the token is refused.
    """
    head = local_head.running()
    address = address or (head.dashboard if head else None)
    if address is None:
        raise UserError(
            "Which cluster? Give --address http://HEAD:8265, or start one here: python -m cluster.local_head start"
        )
    url = address if "://" in address else f"http://{address}"
    if not url.startswith(("http://", "https://")):
        raise UserError(f"--address {address}: expected the URL of Ray's dashboard, such as http://HEAD:8265.")
    if not reachable(url):
        raise UserError(f"Nothing answers at {url}: is the cluster up, its dashboard on that port and the port open?")
    if head is not None and url == head.dashboard:
        tokens.use_token()
    # Ray lets these two override the address that it is given.
    with without_variables("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"), readable_errors(url):
        from ray.job_submission import JobSubmissionClient

        for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
            logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)
        return JobSubmissionClient(url)


@contextlib.contextmanager
def without_variables(*names: str) -> Iterator[None]:
    """Hides environment variables for a while."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


@contextlib.contextmanager
def readable_errors(url: str, job: str | None = None) -> Iterator[None]:
    """Turns what Ray's client raises into messages that say what to do."""
    from ray.exceptions import AuthenticationError
    from requests.exceptions import RequestException

    try:
        yield
    except AuthenticationError as error:
        sent = f"the token from {tokens.source()}" if os.environ.get(tokens.MODE) == "token" else "no token"
        raise UserError(
            f"The cluster at {url} refuses the request: {sent} was sent. Set {tokens.MODE}=token, and {tokens.TOKEN} "
            f"or {tokens.TOKEN_PATH} to the cluster's own token."
        ) from error
    except (RequestException, ConnectionError) as error:
        raise UserError(f"What answers at {url} is not a Ray dashboard, or it broke off: {error}") from error
    except RuntimeError as error:
        if job is not None and "404" in str(error):
            raise UserError(
                f"No job is called {job!r} at {url}. To list them: manygate status --address {url}"
            ) from error
        raise UserError(f"The cluster at {url} refuses: {str(error).strip()}") from error


def follow(client: "JobSubmissionClient", job: str) -> int:
    """Prints a job's log until the job ends; gives the exit code of its driver.

    Interrupting it leaves the job running.
    """
    with readable_errors(client.get_address(), job):
        client.get_job_status(job)
        asyncio.run(print_log(client, job))
        while not client.get_job_status(job).is_terminal():
            time.sleep(0.2)
        return exit_code(client.get_job_info(job))


async def print_log(client: "JobSubmissionClient", job: str) -> None:
    """Streams the log; takes it up again where a connection broke (the server always sends it from the start)."""
    printed = 0
    for attempt in range(RECONNECTS + 1):
        skip = printed
        try:
            async for text in client.tail_job_logs(job):
                fresh, skip = text[skip:], max(0, skip - len(text))
                printed += len(fresh)
                sys.stdout.write(fresh)
                sys.stdout.flush()
            return
        except (RuntimeError, OSError) as error:  # aiohttp's connection errors are OSErrors
            if attempt == RECONNECTS or client.get_job_status(job).is_terminal():
                raise RuntimeError(f"the log of {job} broke off: {error}") from error
            await asyncio.sleep(1)


def exit_code(details: Any) -> int:
    """The exit code of a job's driver; 1 where it left none (stopped, or never started)."""
    if details.driver_exit_code is not None:
        return int(details.driver_exit_code)
    return 0 if str(details.status) == "SUCCEEDED" else 1
