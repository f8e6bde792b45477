"""Writes `cluster/requirements.lock`: `make lock`.

Asks uv for one set of versions that fits Python 3.11 and 3.12 on Linux (x86_64), and writes it for pip, with the hash
of every file that such a machine could download. Package indexes differ between machines, so the lock names none.
"""
# ruff: noqa: S603 - the command is fixed here and runs without a shell

import argparse
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from cluster.install import LOCK, ROOT
from cluster.versions import FBGEMM_PACKAGES, INSTALLED, PYTHONS, TORCHREC_NEEDS

BY_VERSION = ("torch", *FBGEMM_PACKAGES.values())
"""Installed by version (cluster/versions.py): their builds for CPUs and for CUDA have different hashes."""

ONLY_WITH_CUDA = re.compile(r"nvidia-.*|cuda-.*|triton")
"""Dependencies of the CUDA build of torch."""


def requirements() -> list[str]:
    """What is installed besides the dependencies in pyproject.toml."""
    build_needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    pins = [f"torch=={INSTALLED.torch}", f"torchrec=={INSTALLED.torchrec}"]
    pins += [f"{name}=={INSTALLED.fbgemm}" for name in FBGEMM_PACKAGES.values()]
    return [*pins, *TORCHREC_NEEDS, *build_needs]


def resolve(uv: Path) -> list[dict[str, Any]]:
    """The packages that uv chooses, as in the standard `pylock.toml`."""
    command = [str(uv), "pip", "compile", "--quiet", "--universal", "--fork-strategy=fewest", "--format=pylock.toml"]
    command += [f"--python-version={'.'.join(map(str, min(PYTHONS)))}", "--extra=test", "pyproject.toml", "-"]
    answer = subprocess.run(command, cwd=ROOT, input="\n".join(requirements()), capture_output=True, text=True)
    if answer.returncode != 0:
        sys.exit(f"lock: uv found no versions that fit together:\n{answer.stderr.strip()}")
    packages: list[dict[str, Any]] = tomllib.loads(answer.stdout)["packages"]
    return packages


def hashes(package: dict[str, Any]) -> list[str]:
    """The sha256 of each wheel that one of the supported Pythons could install, sorted."""
    found = {}
    for python in PYTHONS:
        own = {wheel["url"]: wheel["hashes"]["sha256"] for wheel in package["wheels"] if fits(wheel["url"], python)}
        if not own:
            sys.exit(f"lock: {package['name']} {package['version']} has no wheel for Python {python[0]}.{python[1]}.")
        found.update(own)
    return sorted(found.values())


def fits(url: str, python: tuple[int, int]) -> bool:
    """Whether a wheel can be installed on Linux (x86_64, glibc) with this version of Python."""
    pythons, abis, platforms = url.rpartition("/")[2].removesuffix(".whl").split("-")[-3:]
    if not any(re.fullmatch(r"any|(many)?linux.*x86_64", platform) for platform in platforms.split(".")):
        return False
    major, minor = python
    tags = {f"cp{major}{minor}", f"py{major}", *(f"py{major}{older}" for older in range(minor + 1))}
    if "abi3" in abis.split("."):  # built for this release of Python or an older one
        tags |= {f"cp{major}{older}" for older in range(minor + 1)}
    elif abis not in ("none", f"cp{major}{minor}"):
        return False
    return bool(tags & set(pythons.split(".")))


def lock_text(packages: list[dict[str, Any]]) -> str:
    """The content of the lock file."""
    lines = [
        "# Written by `make lock`, for Python 3.11 and 3.12 on Linux (x86_64). `make setup` installs these packages",
        "# with --require-hashes --no-deps, then torch and fbgemm by version (cluster/versions.py): their builds for",
        "# CPUs and for CUDA have different hashes, and a package index may have either. For comparison, the hashes of",
        "# the builds on PyPI:",
    ]
    locked = []
    for package in packages:
        name, version = package["name"], package["version"]
        if ONLY_WITH_CUDA.fullmatch(name):
            continue
        if name in BY_VERSION:
            lines += [f"#   {name}=={version} sha256:{value}" for value in hashes(package)]
        else:
            locked.append(" \\\n".join([f"{name}=={version}", *(f"    --hash=sha256:{h}" for h in hashes(package))]))
    return "\n".join([*lines, *locked]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m cluster.lock", description="Write cluster/requirements.lock.")
    parser.add_argument("uv", type=Path, help="the program uv")
    text = lock_text(resolve(parser.parse_args().uv))
    LOCK.write_text(text)
    print(f"lock: wrote {len(re.findall('^[^# ].*==', text, re.M))} packages to {LOCK.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
