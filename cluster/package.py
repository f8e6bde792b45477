"""The files of the project's folder that are sent to a cluster: an exact list, and a zip file of it.

Ray gets the zip file and unpacks it as the job's working folder. If Ray got the folder, it would choose the files
itself, by rules that differ from git's.
"""

import os
import subprocess
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from cluster.private_files import has_private_content, private_part
from pipeline.errors import UserError
from pipeline.sizes import in_bytes

OWN = (".git", ".venv", ".cluster", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis")
"""Names of folders and files that are never sent, at any depth: they belong to this machine."""

OUTPUTS = ("runs",)
LARGEST = 5
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Package:
    """The files that are sent, and what is left out. All names are relative to the folder, with `/`."""

    folder: Path
    files: dict[str, Path]  # name in the package -> the file that is read
    private: list[str]  # files and folders, with the number of files in a folder
    links: list[str]  # symbolic links to folders, to nothing, or to something outside the package
    ignored: list[str]  # files and folders that git ignores
    outputs: tuple[str, ...]  # folders that runs write to, which are not sent
    included: tuple[str, ...]  # see `make_package`

    def including(self, paths: Sequence[str]) -> "Package":
        """This package with more files and folders."""
        return make_package(self.folder, self.outputs, (*self.included, *paths))

    def why_missing(self, name: str) -> str:
        """Why a file of the folder is not in the package, to follow "because"."""
        path = PurePosixPath(name)
        if any((self.folder / part).is_symlink() for part in (path, *path.parents)):
            return "symbolic links to folders, or to what is not sent, are not followed"
        if any(path.is_relative_to(output) for output in (*OUTPUTS, *self.outputs)):
            return "runs write to that folder"
        if private_part(path) is not None or has_private_content(self.folder / path):
            return "it looks private"
        return "it belongs to this machine" if is_own(path) else "git ignores it"

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files.values())

    def left_out(self) -> list[str]:
        """Sentences that say what is not sent although git would keep it."""
        lines = []
        if self.private:
            lines.append(f"left out as private: {', '.join(self.private)} (--include PATH sends one of them)")
        if self.links:
            lines.append(f"left out, symbolic links that are not followed: {', '.join(self.links)}")
        return lines

    def describe(self) -> str:
        """Every file with its size, the total, and what is left out."""
        lines = [f"{in_bytes(file.stat().st_size):>10}  {name}" for name, file in self.files.items()]
        lines.append(f"{in_bytes(self.bytes):>10}  in {len(self.files)} files of {self.folder}, before compression")
        lines += self.left_out()
        if self.ignored:
            more = f" and {len(self.ignored) - 10} more" if len(self.ignored) > 10 else ""
            lines.append(f"left out, because git ignores them: {', '.join(self.ignored[:10])}{more}")
        return "\n".join(lines)

    def largest(self) -> str:
        sizes = sorted(((file.stat().st_size, name) for name, file in self.files.items()), reverse=True)
        return ", ".join(f"{name} ({in_bytes(size)})" for size, name in sizes[:LARGEST])

    def write_zip(self, target: Path) -> None:
        """Writes the package. Equal files give equal bytes, so that Ray does not upload the same content again."""
        with ZipFile(target, "w", ZIP_DEFLATED) as archive:
            for name, file in self.files.items():
                entry = ZipInfo(name, ZIP_EPOCH)
                entry.compress_type = ZIP_DEFLATED
                entry.external_attr = (0o100755 if os.access(file, os.X_OK) else 0o100644) << 16
                archive.writestr(entry, file.read_bytes())


def make_package(folder: Path, outputs: Sequence[str] = (), include: Sequence[str] = ()) -> Package:
    """Lists the files to send: those that git tracks or does not ignore, without outputs, private files and links.

    Args:
        folder: the project's folder.
        outputs: relative folders that runs write to, which are not sent.
        include: files and folders to send although git ignores them or their own name is private. Private files
            below an included folder are still left out.

    Raises:
        UserError: an included path does not exist or is outside the folder, or git cannot list the files.
    """
    folder = folder.resolve()
    skipped = [PurePosixPath(path) for path in (*OUTPUTS, *outputs)]
    files: dict[str, Path] = {}
    private: Counter[str] = Counter()
    links = []
    listed = _listed(folder)
    known = set(listed)
    for name in listed:
        path, file = PurePosixPath(name), folder / name
        if is_own(path) or any(path.is_relative_to(output) for output in skipped):
            continue
        part = private_part(path)
        if part is not None:
            private[f"{part}/" if part != path else name] += 1
        elif file.is_symlink() and not _is_plain_link(file, folder, known):
            links.append(name)
        elif file.is_file():
            _add(files, private, name, file.resolve())
    for text in include:
        _include(text, folder, files, private)
    shown = [f"{name} ({count} files)" if name.endswith("/") else name for name, count in sorted(private.items())]
    ignored = [
        name for name in _ignored(folder) if not any(f"{file}/".startswith(f"{name.rstrip('/')}/") for file in files)
    ]
    return Package(folder, dict(sorted(files.items())), shown, sorted(links), ignored, tuple(outputs), tuple(include))


def is_own(path: PurePosixPath) -> bool:
    return any(fnmatchcase(part, pattern) for part in path.parts for pattern in OWN)


def _add(files: dict[str, Path], private: Counter[str], name: str, file: Path) -> None:
    if has_private_content(file):
        private[name] += 1
    else:
        files[name] = file


def _include(text: str, folder: Path, files: dict[str, Path], private: Counter[str]) -> None:
    """Adds a file, or the files below a folder, that the user has named."""
    chosen = Path(os.path.normpath(folder / text))
    if not chosen.is_relative_to(folder) or not chosen.exists():
        raise UserError(f"--include {text}: expected a file or folder inside {folder}, the folder that is sent.")
    if chosen.is_file():
        name = chosen.relative_to(folder).as_posix()
        files[name] = chosen.resolve()
        private.pop(name, None)
        return
    for below in walk(chosen):
        path, name = PurePosixPath(below), (chosen / below).relative_to(folder).as_posix()
        if private_part(path) is not None:
            private[name] += 1
        elif not is_own(path) and (chosen / below).is_file() and not (chosen / below).is_symlink():
            _add(files, private, name, chosen / below)
    private.pop(f"{chosen.relative_to(folder).as_posix()}/", None)


def _is_plain_link(link: Path, folder: Path, listed: Container[str]) -> bool:
    """Whether a link leads to a file of the folder that may be sent under its own name."""
    target = link.resolve()
    if not target.is_file() or not target.is_relative_to(folder):
        return False
    path = PurePosixPath(target.relative_to(folder).as_posix())
    return str(path) in listed and private_part(path) is None and not is_own(path)


def _listed(folder: Path) -> list[str]:
    """Names of the files that git tracks or does not ignore; without git, of all files."""
    text = _git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if text is None:
        return sorted(walk(folder))
    names = []
    for name in dict.fromkeys(text.split("\0")[:-1]):
        if (folder / name).is_dir() and not (folder / name).is_symlink():  # a repository inside this one
            if (folder / name / ".git").exists():
                names += [f"{name.rstrip('/')}/{below}" for below in _listed(folder / name)]
        elif (folder / name).is_symlink() or (folder / name).exists():
            names.append(name)
    return sorted(names)


def _ignored(folder: Path) -> list[str]:
    arguments = ("ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory")
    text = _git(folder, *arguments)
    found = [] if text is None else text.split("\0")[:-1]
    return sorted(name for name in found if not is_own(PurePosixPath(name)))


def _git(folder: Path, *arguments: str) -> str | None:
    """The output of git; None without git or outside a repository."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        answer = subprocess.run(  # noqa: S603 - our own arguments
            ["git", *arguments],  # noqa: S607 - the user's git
            cwd=folder,
            env={**environment, "LC_ALL": "C"},
            capture_output=True,
        )
    except FileNotFoundError:
        return None
    message = answer.stderr.decode(errors="replace").strip()
    if answer.returncode == 0:
        return os.fsdecode(answer.stdout)
    if "not a git repository" in message:
        return None
    raise UserError(f"git cannot list the files of {folder}: {message}")


def walk(folder: Path) -> Iterator[str]:
    """Names of all files below a folder, and of links to folders, which are not followed."""
    for parent, folders, names in os.walk(folder):
        here = Path(parent).relative_to(folder)
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        folders[:] = [name for name in folders if not is_own(PurePosixPath(name))]
        yield from ((here / name).as_posix() for name in (*names, *links))
