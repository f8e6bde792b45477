"""The settings that decide the content of a feature table, and their fingerprint."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any, Protocol

from pipeline import storage
from pipeline.config.features import Feature
from pipeline.config.logs import Logs, Scenario, Task
from pipeline.config.training import TableSettings
from pipeline.errors import UserError
from pipeline.table.manifest import Manifest

SETTINGS = "settings.json"
COLUMNS = "columns.parquet"
"""A Parquet file without rows that has the columns of lane files; with the settings the first that is written."""

# What these say reaches the model or the job, and no file of the table. Splits may grow as days come in: which
# partition is in which is held against the table apart from the settings.
_ELSEWHERE = {
    "logs": {"max_quarantined", "splits"},
    "features": {"sharding", "dim", "pooling"},
    "tasks": {"weight", "after", "loss", "delta", "power"},
    "table": {"path"},
}


class TableSections(Protocol):
    """The sections of an experiment that decide a feature table."""

    @property
    def logs(self) -> Logs: ...
    @property
    def features(self) -> list[Feature]: ...
    @property
    def scenarios(self) -> list[Scenario]: ...
    @property
    def tasks(self) -> list[Task]: ...
    @property
    def table(self) -> TableSettings: ...


def table_settings(sections: TableSections) -> dict[str, Any]:
    """The sections as JSON, without the keys that do not decide the table."""
    settings: dict[str, Any] = {
        "logs": sections.logs.model_dump(mode="json"),
        "features": [feature.model_dump(mode="json") for feature in sections.features],
        "scenarios": [scenario.model_dump(mode="json") for scenario in sections.scenarios],
        "tasks": [task.model_dump(mode="json") for task in sections.tasks],
        "table": sections.table.model_dump(mode="json"),
    }
    for name, keys in _ELSEWHERE.items():
        section = settings[name]
        for part in section if isinstance(section, list) else [section]:
            for key in keys & part.keys():
                del part[key]
    return settings


def fingerprint(settings: dict[str, Any]) -> str:
    """sha256 of settings, the same for equal ones."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_same_settings(table: str, settings: dict[str, Any]) -> bool:
    """Whether a table was begun here, with the settings given.

    Raises:
        UserError: there is one with other settings, or a folder that is no feature table.
    """
    earlier = storage.read_json(storage.join(table, SETTINGS))
    if earlier is None:
        strange = [name for name in storage.list_folder(table) if name not in (SETTINGS, COLUMNS)]
        if strange:
            raise UserError(
                f"{table} is to hold the feature table, but it has {strange[0]!r} in it and no {SETTINGS}: it is "
                "something else. Give another `name`, or delete the folder with --overwrite."
            )
        return False
    _check_no_differences(table, earlier, settings)
    return True


def check_may_overwrite(table: str) -> None:
    """Raises UserError where a folder holds something else than a feature table: making one anew would delete it."""
    there = storage.list_folder(table)
    if there and SETTINGS not in there:
        raise UserError(
            f"--overwrite would delete {table}, which is no feature table: it has {there[0]!r} in it and no "
            f"{SETTINGS}. Give another `table.path`, or delete the folder yourself."
        )


def check_table_is_of(sections: TableSections, table: str, manifest: Manifest) -> None:
    """Holds a finished table against an experiment that is to read it. Where the logs lie does not matter any more.

    Raises:
        UserError: features, scenarios, tasks or layout differ, or a partition is in another split.
    """
    earlier = storage.read_json(storage.join(table, SETTINGS))
    if earlier is None:
        raise UserError(f"The feature table in {table} has no readable {SETTINGS}: make it again with --overwrite.")
    settings = table_settings(sections)
    for one in (earlier, settings):
        one["logs"].pop("path")
        for join in one["logs"]["joins"]:
            join.pop("path")
    _check_no_differences(table, earlier, settings)
    check_splits(sections.logs, table, {partition.value: partition.split for partition in manifest.partitions})


def check_splits(logs: Logs, table: str, split_of: dict[str, str]) -> None:
    """Raises UserError where a partition of the table is in another split than the experiment puts it in."""
    for value, split in split_of.items():
        wanted = logs.split_of(value)
        if wanted != split:
            where = f"into `{wanted}`" if wanted else "into no split"
            raise UserError(
                f"logs.splits puts {logs.partition}={value} {where}, but the feature table in {table} has "
                f"it in `{split}`. Change the range back, or make the table again with --overwrite."
            )


def _check_no_differences(table: str, earlier: dict[str, Any], settings: dict[str, Any]) -> None:
    changes = list(differences(earlier, settings, ""))
    if changes:
        shown = "; ".join(changes[:5]) + (f"; and {len(changes) - 5} more" if len(changes) > 5 else "")
        raise UserError(
            f"The feature table in {table} was made with other settings: {shown}. Make it again with "
            "`manygate preprocess --overwrite`, change the experiment back, or give it another `name`."
        )


def differences(old: Any, new: Any, path: str) -> Iterator[str]:
    """Where two settings differ, as `path: old -> new`."""
    if old == new:
        return
    old_parts, new_parts = _named(old), _named(new)
    if old_parts is None or new_parts is None:
        yield f"{path}: {json.dumps(old)} -> {json.dumps(new)}"
        return
    for name in dict.fromkeys([*old_parts, *new_parts]):
        below = f"{path}.{name}" if path else name
        if name not in new_parts:
            yield f"{below}: removed"
        elif name not in old_parts:
            yield f"{below}: added"
        else:
            yield from differences(old_parts[name], new_parts[name], below)
    if list(old_parts) != list(new_parts) and sorted(old_parts) == sorted(new_parts) and isinstance(old, list):
        yield f"{path}: in another order"


def _named(value: Any) -> dict[str, Any] | None:
    """The parts of a section, by key or, in a list of sections, by name."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        return {str(part.get("name", i)): part for i, part in enumerate(value)}
    return None
