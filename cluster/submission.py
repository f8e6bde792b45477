"""Sends a job to a Ray cluster, with its command line, its folder and its environment."""

import argparse
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.client import STOP_WAIT_S, readable_errors
from pipeline.checkpoint.choice import CheckpointChoice
from pipeline.errors import UserError
from pipeline.storage import absolute

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from pipeline.config.experiment import Experiment

JOBS = ("preprocess", "train", "evaluate", "predict", "compare", "report")
EXCLUDES = (".git", ".venv", "/runs", ".cluster", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis")
NOT_FLAGS = {"command", "experiment", "overrides", "debug"}


def send(
    client: "JobSubmissionClient", job: argparse.Namespace, file: str, experiment: "Experiment", folder: Path
) -> str:
    """Sends a job and returns its name on the cluster.

    Args:
        client: client of the cluster's job server.
        job: the parsed command line of the job, as `jobs.cli` would run it on this machine.
        file: the experiment file, relative to the folder.
        experiment: the experiment of the file, with the job's overrides.
        folder: the folder that is sent as the job's working folder.

    Raises:
        UserError: the folder is too large, or the cluster refused the job.
    """
    name = f"{experiment.name}-{job.command}-{time.strftime('%Y%m%d-%H%M%S')}"
    with readable_errors(client.get_address()):
        try:
            client.submit_job(
                entrypoint=shlex.join(entrypoint(job, file, experiment)),
                submission_id=name,
                runtime_env=runtime_env(folder, experiment),
                metadata={"job_name": name},
            )
        except (RuntimeError, ValueError) as error:
            raise explain_refusal(error, folder) from error
    return name


def relative_to_folder(path: str, folder: Path) -> str:
    """The path of the experiment file inside the folder that is sent; a file outside it is an error."""
    file = (folder / path).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise UserError(
            f"{path} is outside {folder}, the folder that is sent. Run this command in the project's folder."
        )
    return str(file.relative_to(folder.resolve()))


def entrypoint(job: argparse.Namespace, file: str, experiment: "Experiment") -> list[str]:
    """The command that the cluster runs. Paths become absolute, because the job's working folder is temporary."""
    command = ["python", "-m", "jobs.cli", job.command, file]
    for name, value in vars(job).items():
        if name == "launcher" and value is None and job.command in ("train", "compare"):
            value = "ray"
        if name == "log_format" and value is None:  # `manygate status` reads the records
            value = "json"
        if name in NOT_FLAGS or value in (None, False):
            continue
        if isinstance(value, list):  # a flag that was given several times: each with its value
            command += [word for pair in value for word in pair]
            continue
        if isinstance(value, tuple):  # a range of workers
            value = "-".join(map(str, value))
        if name in ("resume", "checkpoint"):
            value = CheckpointChoice.parse(value)
        if name == "output":
            value = absolute(value)
        flag = f"--{name.replace('_', '-')}"
        command += [flag] if value is True else [flag, str(value)]
    overrides = list(job.overrides)
    for key, path in (("output", experiment.output), ("table.path", experiment.table.path)):
        if path is not None and path != absolute(path):
            overrides.append(f"{key}={absolute(path)}")
    return command + overrides


def runtime_env(folder: Path, experiment: "Experiment") -> dict[str, Any]:
    """The folder and the environment variables of the job.

    Large and private files in the folder are not sent, nor are files that git ignores (Ray leaves those out itself).
    """
    outputs = [
        path for path in (experiment.output, experiment.table.path) if path is not None and path != absolute(path)
    ]
    return {
        "working_dir": str(folder),
        "excludes": [*EXCLUDES, *(f"/{path}" for path in outputs)],
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
    }


def explain_refusal(error: Exception, folder: Path) -> Exception:
    """If the folder is too large to send, returns an error that says what to do; otherwise the error itself."""
    text = str(error)
    if any(sign in text for sign in ("exceeds the maximum size", "Maximum request body size", "413")):
        return UserError(
            f"{folder} is too large to send (Ray accepts 100 MiB, compressed). Keep data outside it, or list it in "
            ".gitignore, and refer to it in the experiment by a URI or an absolute path that the cluster can read."
        )
    return error
