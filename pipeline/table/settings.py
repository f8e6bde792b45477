"""The settings that decide the content of a feature table, and their fingerprint."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from models.loss_config import LossConfig
from pipeline import storage
from pipeline.config.logs import LogsConfig
from pipeline.config.table_experiment import TableExperiment
from pipeline.errors import UserError
from pipeline.table.manifest import Manifest, read_manifest

SETTINGS = "settings.json"
COLUMNS = "columns.parquet"
"""A Parquet file without rows that has the columns of lane files; with the settings the first that is written."""

# What these say reaches the model or the job, and no file that is there. Splits may grow as days come in: which
# partition is in which is held against the table apart from the settings. How encoders meet new days may be switched.
_ELSEWHERE = {
    "logs": {"max_quarantined", "splits"},
    "tasks": {"weight", "after", *LossConfig.model_fields},
    "table": {"path", "encoders"},
}
_GROWING = ("scenarios", "tasks")


def table_settings(sections: TableExperiment) -> dict[str, Any]:
    """The sections as JSON, without the keys that do not decide the table."""
    settings: dict[str, Any] = {
        "logs": sections.logs.model_dump(mode="json"),
        "features": [
            feature.model_dump(mode="json", exclude=set(feature.outside_table)) for feature in sections.features
        ],
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


def without_paths(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings but for where the logs and the side tables lie, which may move."""
    logs = {name: value for name, value in settings["logs"].items() if name != "path"}
    return {**settings, "logs": {**logs, "joins": [{"key": join["key"]} for join in logs["joins"]]}}


def growth_fingerprint(settings: dict[str, Any]) -> str:
    """Of the settings that may grow while a table lives: partitions that were made with others do not go together."""
    return fingerprint({name: settings[name] for name in _GROWING})


@dataclass(frozen=True)
class Growth:
    """What settings have that earlier ones had not."""

    scenarios: dict[str, list[int | str]]  # level -> its new values, only of levels that have some
    tasks: list[str]

    def __bool__(self) -> bool:
        return bool(self.scenarios or self.tasks)

    def __str__(self) -> str:
        new = [f"{level}={value}" for level, values in self.scenarios.items() for value in values]
        return ", ".join(new + [f"task {name}" for name in self.tasks]) or "nothing"


def growth(old: dict[str, Any], new: dict[str, Any]) -> Growth | None:
    """What scenarios and tasks have gained: values of a level, and tasks. None where they differ in anything else.

    What was there must be there still, in the same order; what is new may stand anywhere.

    Args:
        old, new: JSON with the lists `scenarios` and `tasks`. Other sections are not looked at.
    """
    levels = [{**scenario, "values": None} for scenario in old["scenarios"]]
    if levels != [{**scenario, "values": None} for scenario in new["scenarios"]]:
        return None
    gained = {}
    for before, after in zip(old["scenarios"], new["scenarios"], strict=True):
        if [value for value in after["values"] if value in before["values"]] != before["values"]:
            return None
        gained[after["name"]] = [value for value in after["values"] if value not in before["values"]]
    names = [task["name"] for task in old["tasks"]]
    if [task for task in new["tasks"] if task["name"] in names] != old["tasks"]:
        return None
    tasks = [task["name"] for task in new["tasks"] if task["name"] not in names]
    return Growth({level: values for level, values in gained.items() if values}, tasks)


def table_growth(old: dict[str, Any], new: dict[str, Any]) -> Growth | None:
    """What a table's settings have gained; None where a table made with the old ones cannot be continued."""
    others = [{name: value for name, value in one.items() if name not in _GROWING} for one in (old, new)]
    return growth(old, new) if others[0] == others[1] else None


def read_settings(table: str) -> dict[str, Any] | None:
    """The settings that a table was begun with; None where none was.

    Raises:
        UserError: the folder holds something else than a feature table.
    """
    earlier = storage.read_json(storage.join(table, SETTINGS))
    if earlier is None:
        strange = [name for name in storage.list_folder(table) if name not in (SETTINGS, COLUMNS)]
        if strange:
            raise UserError(
                f"{table} is to hold the feature table, but it has {strange[0]!r} in it and no {SETTINGS}: it is "
                "something else. Give another `name`, or delete the folder with --overwrite."
            )
        return None
    return dict(earlier)


def check_may_continue(table: str, earlier: dict[str, Any], settings: dict[str, Any]) -> Growth:
    """What the settings have gained since the table was begun.

    Raises:
        UserError: they differ in something else.
    """
    grown = table_growth(earlier, settings)
    if grown is None:
        raise _other_settings(table, earlier, settings, _MAKE_AGAIN)
    return grown


def check_may_overwrite(table: str) -> None:
    """Raises UserError where a folder holds something else than a feature table: making one anew would delete it."""
    there = storage.list_folder(table)
    if there and SETTINGS not in there:
        raise UserError(
            f"--overwrite would delete {table}, which is no feature table: it has {there[0]!r} in it and no "
            f"{SETTINGS}. Give another `table.path`, or delete the folder yourself."
        )


def check_table_is_of(sections: TableExperiment, table: str, manifest: Manifest) -> None:
    """Holds a finished table against an experiment that is to read it. Where the logs lie does not matter any more.

    Raises:
        UserError: features, scenarios, tasks or layout differ, or a partition is in another split or in none.
    """
    earlier = storage.read_json(storage.join(table, SETTINGS))
    if earlier is None:
        raise UserError(f"The feature table in {table} has no readable {SETTINGS}: make it again with --overwrite.")
    settings = table_settings(sections)
    earlier, settings = without_paths(earlier), without_paths(settings)
    if earlier != settings:
        remedy = _MAKE_AGAIN if table_growth(earlier, settings) is None else _CONTINUE
        raise _other_settings(table, earlier, settings, remedy)
    check_splits(sections.logs, table, {partition.value: partition.split for partition in manifest.partitions})


def read_table(experiment: TableExperiment) -> Manifest:
    """The manifest of the run's feature table.

    Raises:
        UserError: there is none, or it was made with other settings.
    """
    manifest = read_manifest(experiment.table_folder)
    check_table_is_of(experiment, experiment.table_folder, manifest)
    return manifest


def check_splits(logs: LogsConfig, table: str, split_of: dict[str, str]) -> None:
    """Raises UserError where a partition of the table is in another split than the experiment puts it in."""
    for value, split in split_of.items():
        wanted = logs.split_of(value)
        if wanted != split:
            where = f"into `{wanted}`" if wanted else "into no split"
            raise UserError(
                f"logs.splits puts {logs.partition}={value} {where}, but the feature table in {table} has "
                f"it in `{split}`. Run `manygate preprocess` again, or change the range back."
            )


_MAKE_AGAIN = "Make it again with `manygate preprocess --overwrite`"
_CONTINUE = "Take them in with `manygate preprocess`"


def _other_settings(table: str, earlier: dict[str, Any], settings: dict[str, Any], remedy: str) -> UserError:
    changes = list(differences(earlier, settings, ""))
    shown = "; ".join(changes[:5]) + (f"; and {len(changes) - 5} more" if len(changes) > 5 else "")
    return UserError(
        f"The feature table in {table} was made with other settings: {shown}. {remedy}, "
        "change the experiment back, or give it another `name`."
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
