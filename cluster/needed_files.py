"""The files that a job needs and the package must contain. What is not sent is reported before anything is sent."""

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from cluster.package import Package, walk
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.config.experiment import Experiment

LARGEST_PACKAGE = 100 * 2**20
"""Bytes that Ray accepts, compressed. Parquet hardly gets smaller."""

NAMED = 3  # files that are named in a sentence
ELSEWHERE = "a URI or an absolute path that the cluster's machines can read"


def missing_files(experiment: "Experiment", package: Package) -> Iterator[str]:
    """One sentence for each path of the experiment whose files the job reads and would not find.

    A relative path means a path in the package: the job's working folder is where the package is unpacked.
    """
    paths = {"logs.path": experiment.logs.path}
    paths |= {f"logs.joins.{i}.path": join.path for i, join in enumerate(experiment.logs.joins)}
    for key, path in paths.items():
        sentence = _missing_below(key, path, package) if is_relative(path) else None
        if sentence is not None:
            yield sentence


def missing_experiment(path: str, package: Package) -> Iterator[str]:
    """A sentence if the experiment file would not be sent."""
    name = check_is_inside(path, package.folder)
    if name not in package.files:
        yield f"{path} is not sent, because {package.why_missing(name)}: add --include {shlex.quote(name)} to send it."


def misplaced_secrets(files: Mapping[str, str], package: Package) -> Iterator[str]:
    """A sentence for each file of a secret that would be sent with the project: only its path may be sent."""
    for name, file in files.items():
        if (sent := _in_package(file, package)) is not None:
            yield (
                f"--secret {name}: {file} would be sent with the project, as {sent}, and secrets are never sent: move "
                "it out of the folder, or list it in .gitignore."
            )


def notes_on_secrets(files: Mapping[str, str], package: Package) -> Iterator[str]:
    """A sentence for each file of a secret in the project's folder, which the cluster may not have."""
    for name, file in files.items():
        if Path(file).is_relative_to(package.folder) and _in_package(file, package) is None:
            yield (
                f"--secret {name}: {file} is in the folder that is sent, but it is not sent itself: every machine of "
                "the cluster needs the file at this path."
            )


def is_relative(path: str) -> bool:
    """Whether a path depends on the working folder: it is no URI, not absolute, and not in the home folder."""
    return "://" not in path and not path.startswith(("/", "~"))


def check_is_inside(path: str, folder: Path) -> str:
    """The path of the experiment file inside the folder that is sent; a file outside it is an error."""
    file = (folder / path).absolute()
    try:
        return file.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        raise UserError(
            f"{path} is outside {folder}, the folder that is sent. Run this command in the project's folder."
        ) from None


def _in_package(file: str, package: Package) -> str | None:
    """The name under which a file of this machine is sent, if it is."""
    target = Path(file).resolve()
    return next((name for name, sent in package.files.items() if sent == target), None)


def _missing_below(key: str, path: str, package: Package) -> str | None:
    """What is missing of a relative path, and what to do."""
    source = Path(os.path.normpath(package.folder / path))
    if not source.is_relative_to(package.folder):
        return f"{key}: {path} is outside {package.folder}, so it is not sent. Use {ELSEWHERE}."
    if not source.exists():
        return (
            f"{key}: {path} does not exist in {package.folder}, so it is not sent, and the job looks for a relative "
            f"path only in what is sent. Use {ELSEWHERE}."
        )
    below = _visible_files(source, package.folder)
    missing = [name for name in below if not _is_sent(name, package)]
    if not missing:
        return None
    link = source.resolve() if not source.resolve().is_relative_to(package.folder) else None
    elsewhere = f"{key}={link}, if the cluster's machines have that path" if link is not None else ELSEWHERE
    flags = _flags_that_send(source.relative_to(package.folder).as_posix(), missing, package)
    words = [word for flag in flags for word in ("--include", flag)]
    advice = f"Add {shlex.join(words)} to send them, or use" if words else "Use"
    return (
        f"{key}: {len(missing)} of {len(below)} files of {path} are not sent, for example {missing[0]}, because "
        f"{package.why_missing(missing[0])}. {advice} {elsewhere}."
    )


def _is_sent(name: str, package: Package) -> bool:
    """Whether a file, or what is below a link to a folder, is in the package."""
    if not (package.folder / name).is_dir():
        return name in package.files
    return any(file.startswith(f"{name}/") for file in package.files)


def _visible_files(source: Path, folder: Path) -> list[str]:
    """Names of the files and links of a path, without hidden ones, which a log does not count."""
    start = source.relative_to(folder)
    if source.is_file():
        return [start.as_posix()]
    names = (PurePosixPath(name) for name in walk(source))
    return sorted((start / name).as_posix() for name in names if not any(p.startswith((".", "_")) for p in name.parts))


def _flags_that_send(path: str, missing: Sequence[str], package: Package) -> list[str]:
    """The values of `--include` that send what is missing of a path; none if it is too large, or too much to name."""
    with_path = package.including([path])
    rest = [name for name in missing if not _is_sent(name, with_path)]
    flags = [*([path] if len(rest) < len(missing) else []), *rest]
    if len(rest) > NAMED:
        return []
    complete = package.including(flags)
    return flags if all(_is_sent(name, complete) for name in missing) and complete.bytes <= LARGEST_PACKAGE else []
