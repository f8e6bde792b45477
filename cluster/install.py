"""Creates the virtual environment: `python3 -m cluster.install .venv` in the project's folder.

Needs only Python 3.11 or 3.12, because it runs before the project is installed.

First installs `cluster/requirements.lock`, whose hashes pip checks, then torch and fbgemm by version: the CUDA builds
if the machine has an NVIDIA GPU, otherwise the CPU builds. If the environment is complete, a call returns at once;
after an interruption, the next call continues where the last one stopped.
"""
# ruff: noqa: S603 - every command is fixed here and runs without a shell

import argparse
import hashlib
import json
import platform
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from cluster.accelerator import find_accelerator
from cluster.versions import FBGEMM_PACKAGES, INSTALLED, PYTHONS, fits

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "cluster" / "requirements.lock"
STAMP = "manygate-installed.json"
HEARTBEAT_S = 30


class InstallError(Exception):
    """An error of the installation, with a message for the person who typed `make`."""


@dataclass(frozen=True)
class PipCall:
    """One step of pip. The next attempt is made only if pip does not find the version of this one."""

    title: str
    attempts: tuple[tuple[str, ...], ...]


def locked_versions() -> dict[str, str]:
    """Version of each package in the lock file."""
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", LOCK.read_text(), re.MULTILINE))


def lock_is_installed(installed: dict[str, str]) -> bool:
    return locked_versions().items() <= installed.items()


def lock_step() -> PipCall:
    """The packages of the lock file. pip checks their hashes and installs nothing else."""
    arguments = ("install", "--no-deps", "--require-hashes", "-r", str(LOCK))
    return PipCall(f"the {len(locked_versions())} packages of {LOCK.relative_to(ROOT)}", (arguments,))


def plan(accelerator: str, installed: dict[str, str]) -> list[PipCall]:
    """The remaining steps for torch, fbgemm and torchrec, in order.

    Args:
        accelerator: ``cpu`` or ``cuda``.
        installed: version of each package that is already in the environment.
    """
    steps = []
    wanted, unwanted = FBGEMM_PACKAGES[accelerator], FBGEMM_PACKAGES["cuda" if accelerator == "cpu" else "cpu"]
    if unwanted in installed:
        # Both builds write into the same folder, so after removing one the other is incomplete: remove both.
        steps.append(PipCall(f"removing {unwanted}", (("uninstall", "--yes", unwanted, wanted),)))
        installed = {name: version for name, version in installed.items() if name not in (wanted, unwanted)}
    if not torch_fits(accelerator, installed.get("torch")):
        steps.append(PipCall(f"torch {INSTALLED.torch} ({accelerator})", torch_attempts(accelerator)))
    if not fits(installed.get(wanted, ""), INSTALLED.fbgemm):
        steps.append(PipCall(f"{wanted} {INSTALLED.fbgemm}", (("install", f"{wanted}=={INSTALLED.fbgemm}"),)))
    if not fits(installed.get("torchrec", ""), INSTALLED.torchrec):
        torchrec = ("install", "--no-deps", f"torchrec=={INSTALLED.torchrec}")
        steps.append(PipCall(f"torchrec {INSTALLED.torchrec}", (torchrec,)))
    return steps


def torch_fits(accelerator: str, version: str | None) -> bool:
    """Whether an installed torch can stay: on a CPU any build of the release, with a GPU any except the CPU build."""
    return version is not None and fits(version, INSTALLED.torch) and not (accelerator == "cuda" and "+cpu" in version)


def torch_attempts(accelerator: str) -> tuple[tuple[str, ...], ...]:
    """Versions of torch to try: on a CPU the small build first. Many package indexes have only the CUDA build."""
    if accelerator == "cuda":
        return (("install", f"torch=={INSTALLED.torch},!={INSTALLED.torch}+cpu"),)
    return ("install", f"torch=={INSTALLED.torch}+cpu"), ("install", f"torch=={INSTALLED.torch}")


def project_step() -> PipCall:
    """Manygate itself. Everything that it needs, also to be built, is in the lock file."""
    return PipCall("Manygate", (("install", "--no-deps", "--no-build-isolation", "-e", str(ROOT)),))


def environment_fingerprint(accelerator: str) -> str:
    """Changes with everything that decides what is installed."""
    digest = hashlib.sha256(f"{accelerator} {ROOT}".encode())
    names = ("pyproject.toml", "cluster/versions.py", "cluster/accelerator.py", "cluster/install.py")
    for path in (LOCK, *(ROOT / name for name in names)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def python_of(environment: Path) -> Path:
    return environment / "bin" / "python"


def works(environment: Path) -> bool:
    """Whether an environment is usable: complete, and neither moved nor copied (its scripts contain its path)."""
    script = environment / "bin" / "pip"
    try:
        in_place = str(environment.absolute()) in script.read_text()[:500]
        return in_place and subprocess.run([script, "--version"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def make_environment(environment: Path) -> None:
    """Creates the virtual environment; replaces one that does not work."""
    if works(environment):
        return
    if environment.exists() and any(environment.iterdir()) and not (environment / "pyvenv.cfg").exists():
        raise InstallError(f"{environment} exists and is not a virtual environment: give another folder.")
    report(f"creating the virtual environment {environment} with Python {sys.version.split()[0]}")
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", environment], capture_output=True, text=True)
    if made.returncode != 0:
        version = ".".join(map(str, sys.version_info[:2]))
        raise InstallError(
            f"Python cannot create a virtual environment: {(made.stderr or made.stdout).strip()}\n"
            f"On Debian and Ubuntu: sudo apt install python{version}-venv"
        )


def forget_incomplete_packages(environment: Path) -> None:
    """Forgets packages whose installation was interrupted. pip would take them for installed.

    pip writes the file INSTALLER when all files of a package are in place.
    """
    for metadata in environment.glob("lib/python*/site-packages/*.dist-info"):
        if not (metadata / "INSTALLER").exists():
            shutil.rmtree(metadata)


def versions_in(environment: Path) -> dict[str, str]:
    """Version of each package in the environment."""
    code = (
        "import json, re; from importlib.metadata import distributions; "
        "print(json.dumps({re.sub('[-_.]+', '-', d.name).lower(): d.version for d in distributions() if d.name}))"
    )
    answer = subprocess.run([python_of(environment), "-c", code], capture_output=True, text=True)
    if answer.returncode != 0:
        raise InstallError(f"Cannot list the packages in {environment}: {answer.stderr.strip()}\nTry: make clean")
    found: dict[str, str] = json.loads(answer.stdout)
    return found


def usable_versions(environment: Path) -> dict[str, str]:
    """Version of each package in the environment, without torch if it cannot be imported."""
    found = versions_in(environment)
    if "torch" in found:
        tried = subprocess.run([python_of(environment), "-c", "import torch"], capture_output=True)
        if tried.returncode != 0:
            del found["torch"]
    return found


def run_step(step: PipCall, environment: Path, log: Path) -> None:
    """Runs a step; if pip does not find the version, runs the next attempt."""
    for number, arguments in enumerate(step.attempts, start=1):
        report(step.title + (f", attempt {number} of {len(step.attempts)}" if number > 1 else ""))
        code, output = run_pip(arguments, environment, log)
        if code == 0:
            return
        if "DO NOT MATCH THE HASHES" in output:
            raise InstallError(other_file(output))
        if "No matching distribution found" not in output or number == len(step.attempts):
            raise InstallError(f"pip failed at this step: {step.title}.\n{end_of(output)}\nThe whole log: {log}")


def run_pip(arguments: tuple[str, ...], environment: Path, log: Path) -> tuple[int, str]:
    """Runs pip with its output in the log, and reports regularly that it is still running.

    Returns pip's exit code and its output.
    """
    quiet = ("--disable-pip-version-check", "--no-input", "--no-color")
    command = [str(python_of(environment)), "-m", "pip", arguments[0], *quiet, *arguments[1:]]
    if arguments[0] == "install":
        command += ["--progress-bar=off"]
    began = time.monotonic()
    with log.open("w") as stream:
        print(*command, file=stream, flush=True)
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        while True:
            try:
                code = process.wait(timeout=HEARTBEAT_S)
                return code, log.read_text(errors="replace")
            except subprocess.TimeoutExpired:
                report(f"  still running after {time.monotonic() - began:.0f} s")
            except BaseException:
                process.terminate()
                process.wait()
                raise


def other_file(output: str) -> str:
    """An error message about files that differ from those in the lock file."""
    blocks = re.findall(r"^ +(\S+==\S+).*:\n((?:.*\b[0-9a-f]{64}\n?)+)", output, re.MULTILINE)
    files = [(name, re.findall(r"[0-9a-f]{64}", sums)) for name, sums in blocks]
    found = "; ".join(f"{name}: expected sha256 {' or '.join(sums[:-1])}, found {sums[-1]}" for name, sums in files)
    return (
        f"The package index of this machine has other files than {LOCK.relative_to(ROOT)} names ({found}). Nothing of "
        "this step was installed. If you trust the index, write the lock file again: make lock"
    )


def end_of(output: str, lines: int = 15) -> str:
    """The last lines of pip's output, without its warnings about index folders that do not have a package."""
    kept = [line for line in output.splitlines() if not re.search(r"Location .* is ignored", line)]
    return "\n".join(f"    {line}" for line in kept[-lines:])


def report(message: str) -> None:
    print(f"setup: {message}", flush=True)


def install(environment: Path, accelerator: str, only_dependencies: bool = False) -> None:
    """Installs everything that this version of the project needs.

    Args:
        environment: folder of the virtual environment.
        accelerator: ``cpu`` or ``cuda``, the builds of torch and fbgemm.
        only_dependencies: whether to leave out the project itself; the next call adds it.

    Raises:
        InstallError: this machine or Python version is not supported, the folder cannot be used, or pip failed.
    """
    if sys.version_info[:2] not in PYTHONS:
        raise InstallError(f"Python 3.11 or 3.12 is needed; this is {sys.version.split()[0]} ({sys.executable}).")
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise InstallError(f"Linux on x86_64 is needed; this is {sys.platform} on {platform.machine()}.")
    stamp, wanted = environment / STAMP, environment_fingerprint(accelerator)
    if stamp.exists() and stamp.read_text() == wanted and works(environment):
        installed = versions_in(environment)
        if lock_is_installed(installed) and not plan(accelerator, installed):
            report(f"already complete: {environment} ({accelerator})")
            return
    began = time.monotonic()
    make_environment(environment)
    stamp.unlink(missing_ok=True)
    forget_incomplete_packages(environment)
    log = environment / "manygate-install.log"
    if not lock_is_installed(versions_in(environment)):
        run_step(lock_step(), environment, log)
    for step in plan(accelerator, usable_versions(environment)):
        run_step(step, environment, log)
    if only_dependencies:
        return
    run_step(project_step(), environment, log)
    stamp.write_text(wanted)
    report(f"done in {time.monotonic() - began:.0f} s: {environment} ({accelerator})")
    report(f"to check it: {environment}/bin/manygate doctor")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.install", description="Create the virtual environment of Manygate."
    )
    parser.add_argument("environment", type=Path, nargs="?", default=Path(".venv"))
    parser.add_argument("--accelerator", choices=["cpu", "cuda"], help="default: cuda if nvidia-smi lists a GPU")
    parser.add_argument("--only-dependencies", action="store_true", help="leave out the project itself, for an image")
    args = parser.parse_args()
    try:
        install(args.environment, args.accelerator or find_accelerator(), args.only_dependencies)
    except InstallError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("setup: interrupted; the next call continues from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
