"""Send a job to a Ray cluster, and watch it there."""

import argparse
import logging
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.client import follow, open_client, readable_errors
from pipeline.checkpoint.choice import CheckpointChoice
from pipeline.errors import UserError
from pipeline.storage import absolute

if TYPE_CHECKING:
    from pipeline.config.experiment import Experiment

JOBS = ("preprocess", "train", "evaluate", "predict", "compare", "report")
EXCLUDES = (".git", ".venv", "/runs", ".cluster", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis")
STOP_WAIT_S = 600
"""How long a job that is stopped may take to save its state; Ray would kill it after 3 seconds."""
NOT_FLAGS = {"command", "experiment", "overrides", "debug"}

log = logging.getLogger(__name__)


def run(job: argparse.Namespace, address: str | None, follow_log: bool) -> int:
    """Sends a job and, when asked, follows its log to the end.

    Args:
        job: the parsed command line of the job itself, as `jobs.cli` would run it here.
        address: URL of the cluster's dashboard.
        follow_log: print the log until the job ends, and give its exit code.
    """
    from pipeline.config.load import load_experiment

    folder = Path.cwd()
    file = relative_to_folder(job.experiment, folder)
    experiment = load_experiment(folder / file, job.overrides)
    client = open_client(address)
    url = client.get_address()
    name = f"{experiment.name}-{job.command}-{time.strftime('%Y%m%d-%H%M%S')}"
    if experiment.output != absolute(experiment.output):
        log.info(
            "The cluster writes to %s: it must be a folder that all its machines share.", absolute(experiment.output)
        )
    with readable_errors(url):
        try:
            client.submit_job(
                entrypoint=shlex.join(entrypoint(job, file, experiment)),
                submission_id=name,
                runtime_env=runtime_env(folder, experiment),
                metadata={"job_name": name},
            )
        except (RuntimeError, ValueError) as error:
            raise explain_refusal(error, folder) from error
    log.info("Sent %s as %s.", job.command, name)
    if follow_log:
        return watch(client, name, url)
    print(name)
    log.info("To watch it: manygate logs %s --address %s --follow", name, url)
    return 0


def relative_to_folder(path: str, folder: Path) -> str:
    """The experiment file as the job will find it: only the working folder is sent."""
    file = (folder / path).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise UserError(f"{path} is outside {folder}, the folder that is sent: run this from the project's folder.")
    return str(file.relative_to(folder.resolve()))


def entrypoint(job: argparse.Namespace, file: str, experiment: "Experiment") -> list[str]:
    """The command that the cluster runs. Paths become absolute, because its working folder is a temporary one."""
    command = ["python", "-m", "jobs.cli", job.command, file]
    for name, value in vars(job).items():
        if name == "launcher" and value is None and job.command in ("train", "compare"):
            value = "ray"
        if name in NOT_FLAGS or value in (None, False):
            continue
        if isinstance(value, list):  # flags that were given several times, each with its value
            command += [word for pair in value for word in pair]
            continue
        if isinstance(value, tuple):  # a range of workers
            value = "-".join(map(str, value))
        if name in ("resume", "checkpoint"):
            value = CheckpointChoice.parse(value)
        if name == "output":
            value = absolute(value)
        command += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    overrides = list(job.overrides)
    for key, path in (("output", experiment.output), ("table.path", experiment.table.path)):
        if path is not None and path != absolute(path):
            overrides.append(f"{key}={absolute(path)}")
    return command + overrides


def runtime_env(folder: Path, experiment: "Experiment") -> dict[str, Any]:
    """What the job takes along: the folder, less what is large or private; Ray also leaves out what git ignores."""
    own = [path for path in (experiment.output, experiment.table.path) if path is not None and path != absolute(path)]
    return {
        "working_dir": str(folder),
        "excludes": [*EXCLUDES, *(f"/{path}" for path in own)],
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
    }


def explain_refusal(error: Exception, folder: Path) -> Exception:
    """A job that is too large to send has a remedy of its own."""
    text = str(error)
    if any(sign in text for sign in ("exceeds the maximum size", "Maximum request body size", "413")):
        return UserError(
            f"{folder} is too large to send (Ray takes 100 MiB, packed). Keep data outside it, or list it in "
            ".gitignore, and name it in the experiment by a URI or an absolute path that the cluster can read."
        )
    return error


def watch(client: Any, name: str, url: str) -> int:
    """Follows a job; an interrupt ends the watching, not the job."""
    try:
        code = follow(client, name)
    except KeyboardInterrupt:
        print(
            f"\n{name} goes on. To watch it again: manygate logs {name} --address {url} --follow\n"
            f"To stop it: manygate stop {name} --address {url}",
            file=sys.stderr,
        )
        return 130
    log.info("%s: %s, exit code %d", name, str(client.get_job_status(name)).lower(), code)
    return code


def status(job: str | None, address: str | None) -> int:
    """Prints the state of a job, or a line for each job of the cluster."""
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
    """Prints a job's log so far, or all of it as it comes."""
    client = open_client(address)
    if follow_log:
        return watch(client, job, client.get_address())
    with readable_errors(client.get_address(), job):
        sys.stdout.write(client.get_job_logs(job))
    return 0


def stop(job: str, address: str | None) -> int:
    """Asks a job to stop and waits until it has: a training job saves its state first."""
    client = open_client(address)
    with readable_errors(client.get_address(), job):
        if not client.stop_job(job):
            log.info("%s had ended already.", job)
            return 0
        log.info("Asked %s to stop; it may save its state first (%d s at most).", job, STOP_WAIT_S)
        while not client.get_job_status(job).is_terminal():
            time.sleep(0.5)
        log.info("%s: %s", job, str(client.get_job_status(job)).lower())
    return 0


def when(milliseconds: int | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(milliseconds / 1000)) if milliseconds else "-"
