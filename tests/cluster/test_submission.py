"""The command and the folder that are sent to a cluster."""

import importlib
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from cluster import submission
from cluster.package import make_package
from jobs import cli
from pipeline.config.load import load_experiment
from pipeline.errors import UserError
from tests.tiny import EXPERIMENT


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder, which is the working folder."""
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/cli.py").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def entrypoint(*arguments: str) -> str:
    job = cli.parse(arguments)
    return shlex.join(submission.entrypoint(job, job.experiment, load_experiment(job.experiment, job.overrides)))


def test_train_uses_ray_and_writes_to_our_folder(folder: Path) -> None:
    assert entrypoint("train", "tiny.yaml") == (
        f"python -m jobs.cli train tiny.yaml --log-format json --resume auto --launcher ray output={folder}/runs"
    )


def test_given_options_are_kept(folder: Path) -> None:
    command = entrypoint("train", "tiny.yaml", "--launcher", "local", "--workers", "4", "output=s3://bucket/runs")
    assert "--launcher local --workers 4 output=s3://bucket/runs" in command
    assert str(folder) not in command


def test_relative_paths_become_absolute(folder: Path) -> None:
    assert f"--output {folder}/out" in entrypoint("predict", "tiny.yaml", "--output", "out")
    assert f"--checkpoint {folder}/c/step-1" in entrypoint("evaluate", "tiny.yaml", "--checkpoint", "c/step-1")
    assert "--checkpoint best" in entrypoint("evaluate", "tiny.yaml", "--checkpoint", "best")


def test_switches_are_kept(folder: Path) -> None:
    assert " --overwrite " in entrypoint("preprocess", "tiny.yaml", "--overwrite")


def test_overrides_are_quoted(folder: Path) -> None:
    override = "logs.path=my logs; rm -rf $HOME"
    assert override in shlex.split(entrypoint("preprocess", "tiny.yaml", override))


def prepared(folder: Path, *arguments: str, include: tuple[str, ...] = ()) -> submission.Submission:
    job = cli.parse(arguments)
    return submission.prepare(job, load_experiment(job.experiment, job.overrides), folder, include, {}, {})


def test_output_folders_are_not_sent(folder: Path) -> None:
    for name in ("runs/a", "results/b", "tables/c"):
        (folder / name).parent.mkdir()
        (folder / name).touch()
    sent = prepared(folder, "train", "tiny.yaml", "output=results", "table.path=tables")
    assert list(sent.package.files) == ["jobs/cli.py", "tiny.yaml"]


def test_a_folder_that_is_no_project_is_refused(folder: Path) -> None:
    (folder / "jobs/cli.py").unlink()
    with pytest.raises(UserError, match=r"is not the project's folder: there is no jobs/cli\.py"):
        prepared(folder, "train", "tiny.yaml")


def test_an_experiment_file_that_git_ignores_is_reported(folder: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], check=True)
    (folder / ".gitignore").write_text("tiny.yaml")
    sent = prepared(folder, "train", "tiny.yaml")
    assert sent.mistakes == ["tiny.yaml is not sent, because git ignores it: add --include tiny.yaml to send it."]
    sent = prepared(folder, "train", "tiny.yaml", include=("tiny.yaml",))
    assert "tiny.yaml" in sent.package.files and not sent.mistakes


LAYOUTS: dict[str, tuple[dict[str, str | None], str, list[str]]] = {
    "an ignored folder": ({"log/date=1/a.parquet": None}, "log", ["log"]),
    "a part of the log": ({"log/date=1/a.parquet": None, "log/date=2/a.local": None}, "log", ["log"]),
    "below an ignored folder": ({"data/log/date=1/a.parquet": None}, "data/log", ["data/log"]),
    "a private name": ({"log/date=1/a.token": None}, "log", ["log/date=1/a.token"]),
    "ignored and private": ({"log/date=1/b.token": None, "log/date=1/a": None}, "log", ["log", "log/date=1/b.token"]),
    "below outputs": ({"runs/log/date=1/a": None}, "runs/log", ["runs/log"]),
    "an own name": ({".cache/log/date=1/a": None}, ".cache/log", [".cache/log"]),
    "a link outside": ({"OUT/log/date=1/a": None, "log": "OUT/log"}, "log", ["log"]),
    "a link inside": ({"kept/date=1/a": None, "log": "kept"}, "log", ["log"]),
    "a partition that is a link": (
        {"OUT/date=1/a": None, "good/date=0/a": None, "good/date=1": "OUT/date=1"},
        "good",
        ["good/date=1"],
    ),
    "a file outside that is a link": (
        {"OUT/a": None, "good/date=1/": None, "good/date=1/a": "OUT/a"},
        "good",
        ["good/date=1/a"],
    ),
    "a name that a shell would change": ({"my log/date=1/a": None}, "my log", ["my log"]),
    "one file": ({"users.local": None}, "users.local", ["users.local"]),
}
"""Files and links of a folder, the relative path of the log, and the --include that sends it."""


@pytest.mark.parametrize("command", ["pipeline", "preprocess", "compare"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_logs_that_are_not_sent_are_reported_with_advice_that_holds(folder: Path, command: str, layout: str) -> None:
    files, path, expected = LAYOUTS[layout]
    subprocess.run(["git", "init", "--quiet"], check=True)
    (folder / ".gitignore").write_text("log\nmy log\n*.local\n")
    outside = folder.parent / f"{folder.name} outside"
    for name, target in files.items():
        file = outside / name[4:] if name.startswith("OUT/") else folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if target is not None:
            file.symlink_to(outside / target[4:] if target.startswith("OUT/") else folder / target)
        elif not name.endswith("/"):
            file.touch()
    override = f"logs.path={path}"
    (mistake,) = prepared(folder, command, "tiny.yaml", override).mistakes
    assert mistake.startswith("logs.path: ")
    flags = shlex.split(mistake.partition(" Add ")[2].partition(" to send them")[0])
    assert flags == [word for name in expected for word in ("--include", name)]
    sent = prepared(folder, command, "tiny.yaml", override, include=tuple(flags[1::2]))
    assert not sent.mistakes
    assert any(name.startswith(path) for name in sent.package.files)
    if files.get(path) is not None and str(files[path]).startswith("OUT/"):
        elsewhere = re.search(r"or use (logs.path=.*), if the cluster's machines have that path", mistake)
        assert elsewhere and not prepared(folder, command, "tiny.yaml", elsewhere[1]).mistakes


def test_all_that_is_missing_is_reported_at_once(folder: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], check=True)
    (folder / ".gitignore").write_text("log\n*.side\ntiny.yaml\n")
    for name in ("log/date=1/a.parquet", "log/_SUCCESS", "users.side"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    joined = ("preprocess", "tiny.yaml", "logs.joins=[{path: users.side, key: user_id}]")
    assert [
        mistake.partition(" is not sent")[0].partition(" of users")[0] for mistake in prepared(folder, *joined).mistakes
    ] == [
        "tiny.yaml",
        "logs.path: 1 of 1 files of log are not sent, for example log/date=1/a.parquet, because git ignores it. "
        "Add --include log to send them, or use a URI or an absolute path that the cluster's machines can read.",
        "logs.joins.0.path: 1 of 1 files",
    ]
    assert not prepared(folder, *joined, include=("log", "users.side", "tiny.yaml")).mistakes
    train = prepared(folder, "train", "tiny.yaml", include=("tiny.yaml",))
    assert not train.mistakes  # which reads the feature table only


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("../log", r"\.\./log is outside"),
        ("nowhere", "does not exist in .* looks for a relative path only in what is sent. Use a URI or an absolute"),
        ("large", r"files of large are not sent, .* git ignores it\. Use a URI or an absolute path"),
        ("s3://bucket/log", None),
        ("/data/log", None),
        ("~/log", None),
    ],
)
def test_paths_that_cannot_be_sent(folder: Path, path: str, expected: str | None) -> None:
    subprocess.run(["git", "init", "--quiet"], check=True)
    (folder / ".gitignore").write_text("large\n")
    (folder / "large/date=1").mkdir(parents=True)
    with (folder / "large/date=1/a.parquet").open("wb") as file:
        file.truncate(2**27)  # more than Ray accepts, so that --include would not help
    mistakes = prepared(folder, "preprocess", "tiny.yaml", f"logs.path={path}").mistakes
    assert not mistakes if expected is None else re.search(expected, " ".join(mistakes))


def test_secrets_in_the_folder(folder: Path) -> None:
    """A file that would be sent is refused; a file that is not sent may be missing on the cluster."""
    subprocess.run(["git", "init", "--quiet"], check=True)
    job = cli.parse(("train", "tiny.yaml"))
    for name, ignored in (("phrase", ""), ("phrase", "phrase"), ("a.token", "")):
        (folder / name).write_text("hush")
        (folder / ".gitignore").write_text(ignored)
        secrets = {"PHRASE": f"{folder}/{name}"}
        sent = submission.prepare(job, load_experiment("tiny.yaml"), folder, (), {}, secrets)
        if name == "phrase" and not ignored:
            assert "would be sent with the project, as phrase" in sent.mistakes[0]
        else:
            assert not sent.mistakes and "every machine of the cluster needs the file at this path" in sent.describe()


def test_paths_that_the_cluster_must_share_are_named(folder: Path) -> None:
    sent = prepared(folder, "train", "tiny.yaml", "--resume", "old/step-1", "table.path=/shared/table")
    assert f"The cluster reads and writes {folder}/runs, {folder}/old/step-1: all its machines" in sent.describe()
    assert not prepared(folder, "train", "tiny.yaml", "output=s3://bucket/runs").notes()


def test_workers_are_checked_before_anything_is_sent(folder: Path) -> None:
    with pytest.raises(UserError, match="--workers 3: the workers must divide the 64 lanes"):
        prepared(folder, "train", "tiny.yaml", "--workers", "3")
    with pytest.raises(UserError, match="--launcher ray --workers 2"):
        prepared(folder, "evaluate", "tiny.yaml", "--workers", "2")
    prepared(folder, "evaluate", "tiny.yaml", "--launcher", "ray", "--workers", "2")


def test_ids_say_what_they_are_and_differ() -> None:
    found = {submission.new_id("exp", "train") for _ in range(200)}
    assert len(found) == 200
    assert all(re.fullmatch(r"exp-train-\d{8}-\d{6}-[0-9a-f]{8}", name) for name in found)
    assert submission.new_id("a/b c?d", "train").startswith("a-b-c-d-train-")


def test_only_the_paths_of_secrets_are_sent(folder: Path) -> None:
    environment = submission.runtime_env(folder / "p.zip", {"A": "1"}, {"TOKEN": "/run/secrets/token"})
    assert environment["env_vars"]["A"] == "1"
    assert json.loads(environment["env_vars"]["MANYGATE_SECRET_FILES"]) == {"TOKEN": "/run/secrets/token"}
    module, _, function = environment["worker_process_setup_hook"].rpartition(".")
    assert callable(getattr(importlib.import_module(module), function))
    assert "worker_process_setup_hook" not in submission.runtime_env(folder / "p.zip", {}, {})


@pytest.mark.parametrize("text", ["Package size (200MiB) exceeds the maximum size of 100MiB", "status code 413"])
def test_folder_that_is_too_large_is_reported(text: str, folder: Path) -> None:
    (folder / "jobs/large.bin").write_bytes(bytes(5000))
    message = str(submission.explain_refusal(RuntimeError(text), make_package(folder)))
    assert "too large to send" in message and "jobs/large.bin (4.9 KiB)" in message
