"""The Dockerfile: its steps in a plain folder, and the image itself where a builder runs."""

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cluster import versions
from cluster.install import ROOT

WORKDIR = "/manygate"


def instructions() -> list[tuple[str, str]]:
    """Name and arguments of each instruction."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined if line.strip())]


def commands() -> list[list[str]]:
    """The words of each command that is run, without options of the builder and without environment variables."""
    texts = [part for name, rest in instructions() if name == "RUN" for part in rest.split("&&")]
    return [[word for word in shlex.split(text) if not re.match(r"--mount=|[A-Z_]+=", word)] for text in texts]


def ignored(path: str) -> bool:
    """Whether .dockerignore leaves out a path: the last pattern that matches it or a folder above it decides."""
    result = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").removeprefix("**/")
            parts = path.split("/")
            above = ["/".join(parts[: n + 1]) for n in range(len(parts))]
            names = [*above, *parts] if "**/" in line else above
            if any(fnmatch.fnmatchcase(name, pattern) for name in names):
                result = not line.startswith("!")
    return result


def sent_files() -> list[str]:
    """Tracked files that the builder gets."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.splitlines() if not ignored(name) and (ROOT / name).exists()]


def copy_into(folder: Path, arguments: str) -> None:
    """Does what a COPY instruction does."""
    *sources, target = arguments.split()
    for source in sources:
        files = [name for name in sent_files() if name == source or name.startswith(f"{source}/")]
        assert files, f"COPY {source}: there is no such file, or .dockerignore leaves it out"
        for name in files:
            inside = Path(name).relative_to(source) if name != source else Path(Path(source).name)
            place = folder / target / inside
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, place)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's folder of the image, without the environment. Before every installation the installer starts."""
    folder = tmp_path_factory.mktemp("image")
    for name, arguments in instructions():
        if name == "COPY":
            copy_into(folder, arguments)
        elif name == "RUN" and "cluster.install" in arguments:
            run([sys.executable, "-S", "-m", "cluster.install", "--help"], folder)
    return folder


def run(command: list[str], folder: Path) -> str:
    """The output of a command that succeeds; its home folder is new, as in an image."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["HOME"] = str(folder)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_installer_is_called_as_it_can_be(copied: Path) -> None:
    assert ("WORKDIR", WORKDIR) in instructions()
    calls = [words for words in commands() if words[0] == "python"]
    assert [words[1:3] for words in calls] == [["-m", "cluster.install"]] * 2
    options = run([sys.executable, "-m", "cluster.install", "--help"], copied)
    assert all(word in options for words in calls for word in words if word.startswith("--"))
    assert "--only-dependencies" in calls[0]
    assert "--only-dependencies" not in calls[1]


def test_copied_files_make_a_complete_project(copied: Path, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    run([*pip, "--wheel-dir", str(tmp_path), "."], copied)
    [wheel] = tmp_path.glob("*.whl")
    content = set(zipfile.ZipFile(wheel).namelist())
    packages = ("cluster/", "jobs/", "models/", "pipeline/")
    expected = {name for name in sent_files() if name.startswith(packages) and name.endswith((".py", ".jinja"))}
    assert expected | {"manygate.py", "manygate_guard.py"} <= content


def test_last_command_works_in_the_copied_folder(copied: Path) -> None:
    [command] = [rest for name, rest in instructions() if name == "CMD"]
    assert command == '["python", "-m", "jobs.cli", "doctor"]'
    assert f"torch {versions.INSTALLED.torch}" in run([sys.executable, "-m", "jobs.cli", "doctor"], copied)


def test_jobs_find_python_and_are_not_root() -> None:
    found = dict(instructions())
    assert found["ENV"].startswith(f"PATH={WORKDIR}/.venv/bin:$PATH")
    assert found["USER"] == "1000"
    assert f"PATH={WORKDIR}/.venv/bin:$PATH" in next(rest for name, rest in instructions() if name == "RUN")


def test_python_of_the_image_is_supported() -> None:
    default = next(rest for name, rest in instructions() if name == "ARG")
    assert default in [f"PYTHON={major}.{minor}" for major, minor in versions.PYTHONS]


def test_nothing_private_is_sent_to_the_builder() -> None:
    private = [".env", ".ssh/id_ed25519", ".aws/credentials", "jobs/.env", "cluster/.ray/auth_token", "examples/a.pem"]
    outputs = [".venv/bin/python", "runs/a/experiment.yaml", ".git/config", "build/uv/a", "jobs/__pycache__/a.pyc"]
    assert [path for path in private + outputs + [".cluster/head.json", "notes.txt"] if not ignored(path)] == []
    text = (ROOT / "Dockerfile").read_text()
    assert not re.search(r"^(ARG|ENV) .*(TOKEN|PASSWORD|SECRET|KEY|INDEX)", text, re.MULTILINE | re.IGNORECASE)


def builder() -> str | None:
    """A program that can build images here: installed, and its service answers."""
    for name in ("docker", "podman"):
        if shutil.which(name) and subprocess.run([name, "info"], capture_output=True).returncode == 0:
            return name
    return None


@pytest.mark.whole_run
def test_image_is_built_and_checks_itself() -> None:
    program = builder()
    if program is None:
        pytest.skip("neither docker nor podman can build images here")
    tag = "manygate:test"
    subprocess.run([program, "build", "--tag", tag, "."], cwd=ROOT, check=True)
    listed = subprocess.run([program, "run", "--rm", tag], capture_output=True, text=True, check=True)
    assert f"torch {versions.INSTALLED.torch}" in listed.stdout
