"""The current files of a Delta table, where its log is a plain list of commits: all of them, of reader version 1.

https://github.com/delta-io/delta/blob/master/PROTOCOL.md
"""

import json
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from pipeline import storage
from pipeline.config.logs import LogsConfig
from pipeline.config.partition_values import has_value, unescape
from pipeline.errors import UserError, one_line
from pipeline.preprocess.listing import list_below
from pipeline.preprocess.table_formats import DELTA_LOG, refused

_VERSION = re.compile(r"([0-9]{20})\.(json|checkpoint\..+)")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")  # of a URI, such as file:/folder/file
_READS_AT_ONCE = 16

Json = dict[str, Any]


class _NotPlain(Exception):
    """Why the list of current files cannot be used, in words."""


@dataclass
class _Snapshot:
    """The table after some of its commits."""

    added: dict[str, Json] = field(default_factory=dict)  # decoded path, because writers encode differently -> action
    protocol: Json = field(default_factory=dict)
    metadata: Json = field(default_factory=dict)

    def apply(self, name: str, action: Any) -> None:
        match action:
            case {"add": {"path": str(path)} as add}:
                self.added[unquote(path)] = add
            case {"remove": {"path": str(path)}}:
                self.added.pop(unquote(path), None)
            case {"protocol": dict(protocol)}:
                self.protocol = protocol
            case {"metaData": dict(metadata)}:
                self.metadata = metadata
            case dict() if not action.keys() & {"add", "remove", "protocol", "metaData"}:
                pass  # such as commitInfo, which says nothing about files
            case _:
                raise _NotPlain(f"{name} has an action that is not understood")

    def check(self) -> None:
        """Raises _NotPlain if the files cannot be read as they are."""
        version = self.protocol.get("minReaderVersion", 1)
        if version != 1:
            raise _NotPlain(f"it needs a reader of version {version}, and only version 1 is known here")
        mode = _object(self.metadata, "configuration").get("delta.columnMapping.mode", "none")
        if mode != "none":
            raise _NotPlain("its columns have other names in its files (delta.columnMapping.mode)")


def current_files(logs: LogsConfig) -> frozenset[str] | None:
    """The current files of the Delta table in the log folder, relative to it; None if it is no Delta table.

    Raises:
        UserError: the list of current files cannot be read, or has a file that is not in its partition folder.
    """
    folder = storage.join(logs.path, DELTA_LOG)
    if not storage.is_folder(folder):
        return None
    snapshot = _Snapshot()
    try:
        commits = _commits(list_below(folder, recursive=False))
        with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
            for name, actions in zip(commits, pool.map(lambda name: _read(folder, name), commits), strict=True):
                for action in actions:
                    snapshot.apply(name, action)
        snapshot.check()
        return frozenset(_checked(logs, path, add) for path, add in snapshot.added.items())
    except _NotPlain as reason:
        why = f"The list of its current files cannot be used: {reason}."
        raise refused(storage.absolute(logs.path), "a Delta", DELTA_LOG, logs.folders_in_words, why) from None


def _commits(names: Iterable[str]) -> list[str]:
    """The names of all commits, from version 0 to the last version that a commit or a checkpoint has."""
    found = [match for name in names if (match := _VERSION.fullmatch(name))]
    commits = sorted(match[0] for match in found if match[2] == "json")
    missing = next((i for i, name in enumerate(commits) if int(name[:20]) != i), len(commits))
    if missing <= max((int(match[1]) for match in found), default=0):
        raise _NotPlain(f"all commits from version 0 on are needed, but {missing:020}.json is missing")
    return commits


def _read(folder: str, name: str) -> list[Any]:
    """The actions of a commit: one JSON object per line."""
    try:
        text = storage.read_text(storage.join(folder, name))
        actions = [json.loads(line) for line in text.split("\n") if line.strip()]
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:  # the last one for endless brackets
        raise _NotPlain(f"{name} cannot be read ({one_line(error)})") from error
    if not actions:
        raise _NotPlain(f"{name} is empty")
    return actions


def _checked(logs: LogsConfig, path: str, add: Json) -> str:
    """The path of a current file.

    Raises:
        _NotPlain: the file is not in the log folder, only some of its rows exist, or its path does not say its
            partition.
    """
    if not storage.is_relative(path) or _SCHEME.match(path):
        raise _NotPlain(f"its file {path} is not in the folder of the table")
    if add.get("deletionVector") is not None:
        raise _NotPlain(f"rows of its file {path} are deleted by a deletion vector")
    folders = [folder.partition("=") for folder in path.split("/")[:-1]]
    if [name for name, _, _ in folders[: len(logs.levels)]] != logs.levels:
        raise _NotPlain(f"its file {path} is not in a folder {logs.folders_in_words}")
    in_path = {unescape(name): unescape(value) if has_value(value) else None for name, _, value in folders}
    for name, value in _object(add, "partitionValues").items():
        if name not in in_path or in_path[name] != (value or None):
            raise _NotPlain(f"its file {path} is not in a folder of its value of {name}, {value!r}")
    return path


def _object(action: Json, key: str) -> Json:
    value = action.get(key)
    if value is not None and not isinstance(value, dict):
        raise _NotPlain(f"{key} is {value!r}, which is not understood")
    return value or {}
