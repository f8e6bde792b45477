"""Sends a job to a Ray cluster, with its command line, its package and its environment."""

import argparse
import json
import re
import secrets
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from cluster.client import STOP_WAIT_S, readable_errors
from cluster.needed_files import (
    check_is_inside,
    is_relative,
    misplaced_secrets,
    missing_experiment,
    missing_files,
    notes_on_secrets,
)
from cluster.package import Package, make_package
from pipeline.checkpoint.choice import CheckpointChoice
from pipeline.errors import UserError
from pipeline.secret_files import READ_IN_WORKER, SECRET_FILES
from pipeline.storage import absolute
from pipeline.workers.worker_count import check_workers

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from pipeline.config.experiment import Experiment

JOBS = ("pipeline", "preprocess", "train", "evaluate", "predict", "compare", "report")
READ_LOGS = ("pipeline", "preprocess", "compare")
ON_RAY = ("train", "compare", "pipeline")  # unless another launcher is named
NOT_FLAGS = {"command", "experiment", "overrides", "debug"}


@dataclass(frozen=True)
class Submission:
    """All that is sent for a job."""

    id: str
    command: str
    package: Package
    variables: Mapping[str, str]  # plain values
    secret_files: Mapping[str, str]  # name of a variable -> path on the cluster's machines
    shared: Sequence[str] = ()  # folders and checkpoints of this machine's paths, which the cluster must share
    mistakes: Sequence[str] = ()  # one sentence for each reason why the job could not run

    def check(self) -> None:
        """Raises UserError if the job could not run."""
        if self.mistakes:
            raise UserError("\n".join(self.mistakes))

    def notes(self) -> list[str]:
        """Sentences that say what the cluster's machines must have."""
        shared = f"The cluster reads and writes {', '.join(self.shared)}: all its machines must share these paths."
        return [*([shared] if self.shared else []), *notes_on_secrets(self.secret_files, self.package)]

    def describe(self) -> str:
        """The package, the command, the id and the names of the variables."""
        lines = [self.package.describe(), f"command: {self.command}", f"id: {self.id}"]
        if self.variables:
            lines.append(f"environment: {', '.join(self.variables)}")
        if self.secret_files:
            read = ", ".join(f"{name} from {file}" for name, file in self.secret_files.items())
            lines.append(f"secrets, read on each machine: {read}")
        lines += self.notes()
        return "\n".join(lines)


def prepare(
    job: argparse.Namespace,
    experiment: "Experiment",
    folder: Path,
    include: Sequence[str],
    variables: Mapping[str, str],
    secret_files: Mapping[str, str],
) -> Submission:
    """Decides what is sent, without a cluster. A file that the job needs and that is not sent is a mistake in it.

    Args:
        job: the parsed command line of the job, as `jobs.cli` would run it on this machine.
        experiment: the experiment of the job's file, with the job's overrides.
        folder: the project's folder, which becomes the job's working folder.
        include: see `make_package`.
        variables: plain values of environment variables.
        secret_files: paths on the cluster's machines, by the variable that gets the file's content.

    Raises:
        UserError: the folder is not a project, the experiment file is outside it, or the workers do not fit the lanes.
    """
    outputs = [path for path in (experiment.output, experiment.table.path) if path is not None and is_relative(path)]
    package = make_package(folder, outputs, include)
    if "jobs/cli.py" not in package.files:
        raise UserError(
            f"{folder} is not the project's folder: there is no jobs/cli.py in it that could be sent. Run this command "
            "in the folder that contains jobs/, pipeline/ and your experiment."
        )
    file = check_is_inside(job.experiment, package.folder)
    if "workers" in job:
        launcher = job.launcher or ("ray" if job.command in ON_RAY else "local")
        check_workers(launcher, job.workers, experiment.table.lanes)
    mistakes = [*missing_experiment(job.experiment, package), *misplaced_secrets(secret_files, package)]
    if job.command in READ_LOGS:
        mistakes += missing_files(experiment, package)
    name, command = new_id(experiment.name, job.command), shlex.join(entrypoint(job, file, experiment))
    return Submission(name, command, package, variables, secret_files, shared_paths(job, experiment), mistakes)


def send(client: "JobSubmissionClient", submission: Submission) -> None:
    """Sends a job.

    Raises:
        UserError: the package is too large, or the cluster refused the job.
    """
    with TemporaryDirectory() as scratch, readable_errors(client.get_address()):
        package = Path(scratch) / "package.zip"
        submission.package.write_zip(package)
        try:
            client.submit_job(
                entrypoint=submission.command,
                submission_id=submission.id,
                runtime_env=runtime_env(package, submission.variables, submission.secret_files),
                metadata={"job_name": submission.id},
            )
        except (RuntimeError, ValueError) as error:
            raise explain_refusal(error, submission.package) from error


def new_id(name: str, command: str) -> str:
    """An id that says what the job is; the random end keeps two jobs of one second apart."""
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)
    return f"{readable}-{command}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"


def shared_paths(job: argparse.Namespace, experiment: "Experiment") -> list[str]:
    """The absolute paths of what the job reads and writes at relative paths, outside the package."""
    flags = vars(job)
    given = [experiment.output, experiment.table.path, flags.get("output")]
    named = [flags[name] for name in ("resume", "checkpoint") if flags.get(name)]
    given += [text for text in named if CheckpointChoice.parse(text).word is None]
    return list(dict.fromkeys(absolute(path) for path in given if path and path != absolute(path)))


def entrypoint(job: argparse.Namespace, file: str, experiment: "Experiment") -> list[str]:
    """The command that the cluster runs. Paths become absolute, because the job's working folder is temporary."""
    command = ["python", "-m", "jobs.cli", job.command, file]
    for name, value in vars(job).items():
        if name == "launcher" and value is None and job.command in ON_RAY:
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


def runtime_env(package: Path, variables: Mapping[str, str], secret_files: Mapping[str, str]) -> dict[str, Any]:
    """Ray's description of the job's environment: a zip file, variables, and for secrets only the paths."""
    values = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), **variables}
    environment: dict[str, Any] = {"working_dir": str(package), "env_vars": values}
    if secret_files:
        values[SECRET_FILES] = json.dumps(dict(secret_files))
        environment["worker_process_setup_hook"] = READ_IN_WORKER
    return environment


def explain_refusal(error: Exception, package: Package) -> Exception:
    """If the package is too large to send, returns an error that says what to do; otherwise the error itself."""
    text = str(error)
    if any(sign in text for sign in ("exceeds the maximum size", "Maximum request body size", "413")):
        return UserError(
            f"{package.folder} is too large to send (Ray accepts 100 MiB, compressed). Its largest files: "
            f"{package.largest()}. Keep data outside it, or list it in .gitignore, and refer to it in the experiment "
            "by a URI or an absolute path that the cluster can read."
        )
    return error
