"""Runs the command line in this process, for tests of what a command does and prints."""

import atexit
import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from jobs import cli
from tests.workers import ForkServerProcess, fork


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


def manygate(*arguments: str, check: int | None = None) -> Answer:
    """Runs a command as a person would, but in this process, and compares its exit code with the expected one."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = cli.main(arguments)
    answer = Answer(code, out.getvalue(), err.getvalue())
    assert check is None or code == check, f"{arguments}\n{answer.out}\n{answer.err}"
    return answer


def start_manygate(*arguments: str, output: Path) -> ForkServerProcess:
    """Starts a command in a separate process, for tests that send signals; it prints into `output`."""
    return fork(_main, arguments, output=output)


def _main(arguments: tuple[str, ...]) -> None:
    try:
        sys.exit(cli.main(arguments))
    finally:
        atexit._run_exitfuncs()  # a forked process of multiprocessing ends without them, a command does not
