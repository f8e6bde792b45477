"""Secrets of a job: environment variables whose values each process reads from files of its machine.

Only the paths of the files are sent to a cluster. The first process of a job reads them in `jobs.cli`; Ray's workers
read them by `worker_process_setup_hook`, before they import anything else, so this file imports little.
"""

import json
import os
import socket
from pathlib import Path

from pipeline.errors import UserError

SECRET_FILES = "MANYGATE_SECRET_FILES"  # noqa: S105 - the name of a variable; its value is {name: file} as JSON
UNREADABLE = "MANYGATE_UNREADABLE_SECRET"
READ_IN_WORKER = "pipeline.secret_files.read_in_worker"
"""Import path of the function below, for Ray."""


def read_secrets() -> None:
    """Sets the variables from their files, in this process. Does nothing in a process without secrets.

    Raises:
        UserError: a file cannot be read, or is empty.
    """
    for name, file in json.loads(os.environ.get(SECRET_FILES, "{}")).items():
        try:
            value = Path(file).read_text(encoding="utf-8").rstrip("\r\n")
        except OSError as error:
            raise UserError(_refusal(name, file, error.strerror or str(error))) from error
        except UnicodeDecodeError as error:
            raise UserError(_refusal(name, file, "it is not text")) from error
        if not value or "\0" in value:
            raise UserError(_refusal(name, file, "it is not text" if value else "it is empty"))
        os.environ[name] = value


def read_in_worker() -> None:
    """Reads the secrets in a worker process of Ray.

    An error here would end the process without a message, and Ray would start others. It is kept for `check_secrets`.
    """
    try:
        read_secrets()
    except UserError as error:
        os.environ[UNREADABLE] = str(error)


def check_secrets() -> None:
    """Raises the UserError of `read_in_worker`, if there was one. Called before a worker's work begins."""
    if message := os.environ.get(UNREADABLE):
        raise UserError(message)


def _refusal(name: str, file: str, reason: str) -> str:
    return (
        f"The secret {name} cannot be read from {file} on {socket.gethostname()}: {reason}. Every machine of the "
        "cluster needs this file: put it there, or give another path with --secret."
    )
