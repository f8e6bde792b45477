"""The settings that decide the content of a feature table, and their fingerprint.

Settings are compared by what they mean in the current schema. The document of a table stays as it was first written,
and so does its fingerprint, which names the table in checkpoints and records: a key that the schema has gained since,
with a default, changes neither.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from models.loss_config import LossConfig
from pipeline import storage
from pipeline.config.logs import LogsConfig, ScenarioConfig, TaskConfig
from pipeline.config.table_experiment import TableExperiment
from pipeline.config.training import TableConfig
from pipeline.documents import Json, parse_document
from pipeline.errors import UserError
from pipeline.features.kinds import FEATURE_KINDS, AnyFeature
from pipeline.section import Section
from pipeline.table.manifest import MAKE_AGAIN, Manifest, read_manifest

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
_SECTIONS = ("logs", "features", "scenarios", "tasks", "table")
_GROWING = ("scenarios", "tasks")


class DecidingSections(Section):
    """What settings mean. Keys that decide nothing in the table are not in the document: here they have any value."""

    logs: LogsConfig
    features: list[AnyFeature]
    scenarios: list[ScenarioConfig]
    tasks: list[TaskConfig]
    table: TableConfig


@dataclass(frozen=True)
class TableSettings:
    """The settings of a table: as they were written, and what they mean."""

    document: Json
    meaning: DecidingSections

    @staticmethod
    def of(sections: TableExperiment) -> "TableSettings":
        """The settings of a table that these sections of an experiment would make now."""
        return _parse_settings(table_settings(sections), SETTINGS)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.document)

    @property
    def made_with(self) -> str:
        """Of what may grow while a table lives: partitions that were made with other scenarios or tasks do not fit."""
        return fingerprint({name: self.document[name] for name in _GROWING})

    def without_paths(self) -> DecidingSections:
        """What the settings mean but for where the logs and the side tables are, which may move."""
        joins = [join.model_copy(update={"path": ""}) for join in self.meaning.logs.joins]
        logs = self.meaning.logs.model_copy(update={"path": "", "joins": joins})
        return self.meaning.model_copy(update={"logs": logs})


def table_settings(sections: TableExperiment | DecidingSections) -> Json:
    """The sections as JSON, without the keys that do not decide the table."""
    return {
        "logs": _deciding("logs", sections.logs.model_dump(mode="json")),
        "features": [_deciding("features", feature.model_dump(mode="json")) for feature in sections.features],
        "scenarios": [_deciding("scenarios", scenario.model_dump(mode="json")) for scenario in sections.scenarios],
        "tasks": [_deciding("tasks", task.model_dump(mode="json")) for task in sections.tasks],
        "table": _deciding("table", sections.table.model_dump(mode="json")),
    }


def _deciding(name: str, section: Any) -> Any:
    """A section, or a list of some, without the keys that do not decide the table."""
    if isinstance(section, list):
        return [_deciding(name, part) for part in section]
    kind = FEATURE_KINDS.get(section.get("kind")) if name == "features" else None
    elsewhere = kind.outside_table if kind is not None else _ELSEWHERE.get(name, frozenset())
    return {key: value for key, value in section.items() if key not in elsewhere}


def _parse_settings(document: Json, source: str) -> TableSettings:
    meaning = parse_document(document, DecidingSections, source, MAKE_AGAIN, way_over=_with_required_keys)
    return TableSettings(document, meaning)


def _with_required_keys(document: Json) -> Json:
    """The document with a value for each key that sections require and that does not decide the table.

    A key that decides nothing since a later version is left out: it may differ.
    """
    deciding = {name: _deciding(name, section) if name in _SECTIONS else section for name, section in document.items()}
    logs = {**deciding.get("logs", {}), "splits": {"train": [0, 0]}}
    features = [
        FEATURE_KINDS[feature["kind"]].complete_settings(feature) if feature.get("kind") in FEATURE_KINDS else feature
        for feature in deciding.get("features", [])
    ]
    return {**deciding, "logs": logs, "features": features}


def fingerprint(settings: Json) -> str:
    """sha256 of settings, the same for equal ones."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def fingerprint_of_ids(sections: TableExperiment, files: dict[str, dict[str, int]]) -> str:
    """Of all that decides which value gets which id: the settings but for the layout of the table and paths; the files.

    Args:
        files: of each partition that the encoders are fitted on, with their bytes.
    """
    settings = table_settings(sections)
    logs = {name: value for name, value in settings["logs"].items() if name != "path"}
    logs["joins"] = [{"key": join["key"]} for join in logs["joins"]]
    return fingerprint({**settings, "logs": logs, "table": None, "files": files})


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


class Growing(Protocol):
    """Sections that may gain values and tasks."""

    @property
    def scenarios(self) -> list[ScenarioConfig]: ...
    @property
    def tasks(self) -> list[TaskConfig]: ...


def growth(old: Growing, new: Growing) -> Growth | None:
    """What scenarios and tasks have gained: values of a level, and tasks. None where they differ in anything else.

    What was there must be there still, in the same order; what is new may stand anywhere. Other sections are not looked
    at.
    """
    levels = [[level.model_copy(update={"values": []}) for level in one.scenarios] for one in (old, new)]
    if levels[0] != levels[1]:
        return None
    gained = {}
    for before, after in zip(old.scenarios, new.scenarios, strict=True):
        if [value for value in after.values if value in before.values] != before.values:
            return None
        gained[after.name] = [value for value in after.values if value not in before.values]
    names = [task.name for task in old.tasks]
    if [task for task in new.tasks if task.name in names] != old.tasks:
        return None
    tasks = [task.name for task in new.tasks if task.name not in names]
    return Growth({level: values for level, values in gained.items() if values}, tasks)


def table_growth(old: DecidingSections, new: DecidingSections) -> Growth | None:
    """What a table's settings have gained; None where a table made with the old ones cannot be continued."""
    others = [(one.logs, one.features, one.table) for one in (old, new)]
    return growth(old, new) if others[0] == others[1] else None


def read_settings(table: str) -> TableSettings | None:
    """The settings that a table was begun with; None where none was.

    Raises:
        UserError: the folder holds something else than a feature table, or one that another version has made.
    """
    uri = storage.join(table, SETTINGS)
    document = storage.read_json(uri)
    if document is None:
        strange = [name for name in storage.list_folder(table) if name not in (SETTINGS, COLUMNS)]
        if strange:
            raise UserError(
                f"{table} is to hold the feature table, but it has {strange[0]!r} in it and no {SETTINGS}: it is "
                "something else. Give another `name`, or delete the folder with --overwrite."
            )
        return None
    return _parse_settings(document, uri)


def check_may_continue(table: str, earlier: TableSettings, settings: TableSettings) -> Growth:
    """What the settings have gained since the table was begun.

    Raises:
        UserError: they differ in something else.
    """
    grown = table_growth(earlier.meaning, settings.meaning)
    if grown is None:
        raise _other_settings(table, earlier.meaning, settings.meaning, _MAKE_AGAIN)
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
    uri = storage.join(table, SETTINGS)
    document = storage.read_json(uri)
    if document is None:
        raise UserError(f"The feature table in {table} has no readable {SETTINGS}: make it again with --overwrite.")
    earlier, settings = _parse_settings(document, uri), TableSettings.of(sections)
    old, new = earlier.without_paths(), settings.without_paths()
    if old != new:
        raise _other_settings(table, old, new, _MAKE_AGAIN if table_growth(old, new) is None else _CONTINUE)
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


def _other_settings(table: str, earlier: DecidingSections, settings: DecidingSections, remedy: str) -> UserError:
    changes = list(differences(table_settings(earlier), table_settings(settings), ""))
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
