"""The command line: messages and exit codes."""

import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest

from jobs import arguments, cli, commands
from pipeline.errors import UserError


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The error text of argparse, which exits with code 2."""
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 2
    return capsys.readouterr().err


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    code = "import sys, runpy; sys.argv = ['cli', '--help']; runpy.run_module('jobs.cli', run_name='__main__')"
    loaded = f"try:\n    {code}\nfinally:\n    print({{'torch', 'ray', 'pyarrow', 'pydantic'}} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert all(command in answer.stdout for command in arguments.COMMANDS)
    assert answer.stdout.splitlines()[-1] == "set()"


def test_every_command_has_a_handler() -> None:
    assert list(cli.HANDLERS) == list(arguments.COMMANDS)


def test_user_error_is_one_message_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "nowhere.yaml"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("manygate: Cannot read the experiment file nowhere.yaml")
    assert "Traceback" not in message


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["preprocess", "nowhere.yaml", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'train'?" in complaint(capsys, "trian", "a.yaml")
    assert "known: doctor, pipeline, preprocess" in complaint(capsys, "xyz")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "EXPERIMENT"),
        (["train", "a.yaml", "--worker", "2"], "--worker 2 is not known here"),
        (["train", "a.yaml", "epochs"], "epochs is not known here"),
        (["train", "a.yaml", "--workers", "0"], "whole number above zero, found '0'"),
        (["train", "a.yaml", "--launcher", "slurm"], "slurm"),
        (["predict", "a.yaml"], "--output"),
        (["doctor", "a=1"], "a=1 is not known here"),
        (["submit"], "which job"),
    ],
)
def test_wrong_arguments(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert message in complaint(capsys, *arguments)


def test_overrides_may_appear_between_flags() -> None:
    args = cli.parse(["train", "a.yaml", "x=1", "--workers", "2", "y.z=[1, 2]", "--resume", "never"])
    assert args.overrides == ["x=1", "y.z=[1, 2]"]
    assert (args.workers, args.resume, args.launcher) == (2, "never", None)


def test_submit_keeps_the_job_apart_from_its_own_flags() -> None:
    args = cli.parse(["submit", "train", "a.yaml", "--address", "http://h:8265", "--workers", "4", "x=1", "--follow"])
    assert (args.address, args.follow) == ("http://h:8265", True)
    assert (args.job.command, args.job.experiment, args.job.workers, args.job.overrides) == (
        "train",
        "a.yaml",
        4,
        ["x=1"],
    )


def test_only_jobs_are_sent(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["submit", "doctor"]) == 2
    assert "doctor is not a job that a cluster can run" in capsys.readouterr().err


@pytest.mark.parametrize(("raised", "code"), [(UserError("no"), 2), (KeyboardInterrupt(), 130)])
def test_exit_codes(raised: BaseException, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def handler(args: Any) -> None:
        raise raised

    monkeypatch.setitem(cli.HANDLERS, "doctor", handler)
    assert cli.main(["doctor"]) == code


def test_unexpected_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.HANDLERS, "doctor", lambda args: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])


def test_exit_code_of_a_job_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    called = {}
    job = ModuleType("jobs.train")
    job.run = lambda experiment, **settings: called.update(settings) or 75  # type: ignore[attr-defined, func-returns-value]
    monkeypatch.setitem(sys.modules, "jobs.train", job)
    monkeypatch.setattr("jobs.train", job, raising=False)
    monkeypatch.setattr(commands, "read", lambda args: None)
    assert cli.main(["train", "a.yaml", "--workers", "2"]) == 75
    assert called == {"launcher": "local", "workers": 2, "resume": "auto"}
