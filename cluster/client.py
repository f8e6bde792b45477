"""Client of Ray's job server, with error messages that say what to do."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

from cluster import local_head, tokens
from cluster.addresses import dashboard_url, host_and_port, is_same, reachable, unreachable, without_proxy
from cluster.job_state import REASON_CHARACTERS, describe_waiting, lost_head
from pipeline.errors import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

log = logging.getLogger(__name__)

RECONNECTS = 5
SILENCE_S = 15.0  # without new lines, before the head is checked
WAITING_REPORT_S = 20
"""A job that is pending for this long is reported; the next reports come after three times as long."""
STOP_WAIT_S = 600
"""Time that a stopped job has to save its state. Ray's default is 3 seconds."""


def open_client(address: str | None) -> "JobSubmissionClient":
    """Opens a client of the job server at an address such as http://HEAD:8265, see `dashboard_url`.

    Without an address, the job server is that of the head that was started on this machine.

    Raises:
        UserError: there is no address and no head, nothing answers, the server is not Ray, or it refuses the token.
    """
    head = local_head.running()
    if address is None and head is not None:
        address = head.dashboard
    if address is None:
        raise UserError(
            "No cluster is given. Add --address http://HEAD:8265, or start a cluster on this machine: "
            "python -m cluster.local_head start"
        )
    url = dashboard_url(address)
    if head is not None and is_same(url, head.dashboard):
        url = head.dashboard
        tokens.use_token()
    if not reachable(url):
        raise UserError(unreachable(url))
    os.environ.update(without_proxy(host_and_port(url)[0]))
    # Either of these variables would override the address that we pass to Ray.
    with without_variables("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"), readable_errors(url):
        from ray.job_submission import JobSubmissionClient

        for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
            logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)
        try:
            return JobSubmissionClient(url)
        except (KeyError, TypeError) as error:  # it has answered with JSON of another form
            raise UserError(f"The server at {url} is not a Ray dashboard: its version is missing.") from error


@contextlib.contextmanager
def without_variables(*names: str) -> Iterator[None]:
    """Removes environment variables while the block runs, then restores them."""
    removed = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(removed)


@contextlib.contextmanager
def readable_errors(url: str, job: str | None = None) -> Iterator[None]:
    """Converts the errors of Ray's client into UserErrors that say what to do."""
    from ray.exceptions import AuthenticationError
    from requests.exceptions import RequestException

    try:
        yield
    except AuthenticationError as error:
        sent = f"the token from {tokens.source()}" if os.environ.get(tokens.MODE) == "token" else "no token"
        raise UserError(
            f"The cluster at {url} refused the request: {sent} was sent. Set {tokens.MODE}=token, and {tokens.TOKEN} "
            f"or {tokens.TOKEN_PATH} to the cluster's token."
        ) from error
    except (RequestException, ConnectionError) as error:
        if not reachable(url):
            raise UserError(unreachable(url)) from error
        raise UserError(
            f"The server at {url} is not a Ray dashboard, or the connection failed: {first_cause(error)}."
        ) from error
    except RuntimeError as error:
        if "Version check returned 404" in str(error):
            raise UserError(
                f"The server at {url} is not a Ray dashboard: expected the URL that a browser shows for the dashboard, "
                "without the # and what follows it."
            ) from error
        if job is not None and "404" in str(error):
            raise UserError(
                f"No job is called {job!r} at {url}. To list the jobs: manygate status --address {url}"
            ) from error
        raise UserError(f"Error from the cluster at {url}: {str(error).strip()}") from error


def first_cause(error: BaseException) -> str:
    """The text of the first of the errors that led to this one. Libraries put long texts around it."""
    while error.__context__ is not None:
        error = error.__context__
    return " ".join(str(error).split()).rstrip(".")[:REASON_CHARACTERS] or type(error).__name__


def follow(client: "JobSubmissionClient", job: str, write: Callable[[str], object]) -> int:
    """Passes pieces of a job's log to `write` until the job ends; returns the exit code of its driver.

    If this function is interrupted, the job continues to run.
    """
    url = client.get_address()
    with readable_errors(url, job):
        client.get_job_status(job)
        try:
            wait_until_started(client, job)
            asyncio.run(print_log(client, job, write))
            while not client.get_job_status(job).is_terminal():
                time.sleep(0.2)
            return exit_code(client.get_job_info(job))
        except (RuntimeError, OSError) as error:  # requests' errors are OSErrors
            raise lost_head(url, job) from error


def wait_until_started(client: "JobSubmissionClient", job: str) -> None:
    """Waits while a job is pending, and says so after a while: its log is empty until then."""
    start, report_after = time.monotonic(), WAITING_REPORT_S
    while str(client.get_job_status(job)) == "PENDING":
        waited = time.monotonic() - start
        if waited >= report_after:
            log.warning(describe_waiting(job, waited))
            report_after *= 3
        time.sleep(0.2)


async def print_log(client: "JobSubmissionClient", job: str, write: Callable[[str], object]) -> None:
    """Streams the log. After a lost connection the server sends it from the start, so the printed part is skipped."""
    printed = 0
    for attempt in range(RECONNECTS + 1):
        skip = printed
        try:
            async for text in tail(client, job):
                new, skip = text[skip:], max(0, skip - len(text))
                printed += len(new)
                write(new)
            return
        except (RuntimeError, OSError) as error:  # aiohttp's connection errors are OSErrors
            if client.get_job_status(job).is_terminal():
                write(client.get_job_logs(job)[printed:])
                return
            if attempt == RECONNECTS:
                raise RuntimeError(f"lost the connection to the log of {job}: {error}") from error
            await asyncio.sleep(1)


async def tail(client: "JobSubmissionClient", job: str) -> AsyncIterator[str]:
    """Pieces of a job's log. While there are none, checks that the head is up: a lost machine closes no connection.

    Raises:
        OSError: the head does not answer.
    """
    pieces = aiter(client.tail_job_logs(job))
    while True:
        piece = asyncio.ensure_future(anext(pieces))
        while not (await asyncio.wait([piece], timeout=SILENCE_S))[0]:
            if not reachable(client.get_address()):
                piece.cancel()
                raise OSError(f"nothing answers at {client.get_address()}")
        try:
            yield piece.result()
        except StopAsyncIteration:
            return


def exit_code(details: Any) -> int:
    """The exit code of a job's driver; if there is none, 0 for a job that succeeded and 1 for any other."""
    if details.driver_exit_code is not None:
        return int(details.driver_exit_code)
    return 0 if str(details.status) == "SUCCEEDED" else 1
