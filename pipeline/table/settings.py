"""The settings that decide the content of a feature table, and their fingerprint.

Settings are compared by their meaning in the current schema. The document of a table stays as it was first written, and
so does its fingerprint, which identifies the table in checkpoints and records: a key that is later added to the
schema, with a default, changes neither.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from models.loss_config import LossConfig
from pipeline import storage
from pipeline.config.logs import LogsConfig, ScenarioConfig, TaskConfig
from pipeline.config.table_experiment import TableExperiment
from pipeline.config.training import TableConfig
from pipeline.documents import Json, parse_document
from pipeline.errors import UserError
from pipeline.features.kinds import FEATURE_KINDS, AnyFeature
from pipeline.section import Section
from pipeline.table.manifest import REBUILD_HINT, Manifest, read_manifest
from pipeline.table_folder import COLUMNS, SETTINGS

CONTINUE_HINT = "apply the changes with `manygate preprocess EXPERIMENT`"

# Keys that affect the model or the job, but no existing file. Splits may grow as new days arrive: the assignment of
# partitions to splits is checked separately from the settings. The way encoders treat new days may be switched.
_UNRELATED_KEYS = {
    "logs": {"max_quarantined", "missing_columns", "splits"},
    "tasks": {"weight", "after", "prediction", *LossConfig.model_fields},
    "table": {"path", "encoders"},
}
# Keys that the first tables did not have. The settings of a new table contain such a key only if it is used, so that
# equal settings have equal fingerprints in all versions.
_LATER_KEYS: dict[str, tuple[type[Section], tuple[str, ...]]] = {
    "logs": (LogsConfig, ("weight", "negatives")),
    "tasks": (TaskConfig, ("missing", "only", "sample_weight", "max", "relative_to", "quantiles_within")),
}
GROWING_SECTIONS = ("scenarios", "tasks")
"""Sections that may gain values and tasks during the life of a table or a model."""


class DecidingSections(Section):
    """The meaning of settings. Keys that do not affect the table are not in the document; here they have some value."""

    logs: LogsConfig
    features: list[AnyFeature]
    scenarios: list[ScenarioConfig]
    tasks: list[TaskConfig]
    table: TableConfig


@dataclass(frozen=True)
class TableSettings:
    """The settings of a table: the document as written, and its meaning."""

    document: Json
    meaning: DecidingSections

    @staticmethod
    def of(sections: TableExperiment) -> "TableSettings":
        """The settings that a new table made from these sections of an experiment would have."""
        return _parse_settings(_without_unused_keys(table_settings(sections)), SETTINGS)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.document)

    @property
    def made_with(self) -> str:
        """Fingerprint of the sections that may grow: partitions made with other scenarios or tasks do not fit."""
        return fingerprint({name: self.document[name] for name in GROWING_SECTIONS})

    def without_paths(self) -> DecidingSections:
        """The meaning of the settings, without the paths of the logs and the side tables, which may move."""
        joins = [join.model_copy(update={"path": ""}) for join in self.meaning.logs.joins]
        logs = self.meaning.logs.model_copy(update={"path": "", "joins": joins})
        return self.meaning.model_copy(update={"logs": logs})


def table_settings(sections: TableExperiment | DecidingSections) -> Json:
    """The sections as JSON, without the keys that do not affect the table."""
    data = sections.model_dump(mode="json", include=set(DecidingSections.model_fields))
    return {name: _relevant_keys(name, data[name]) for name in DecidingSections.model_fields}


def _relevant_keys(name: str, section: Any) -> Any:
    """A section, or a list of sections, without the keys that do not affect the table."""
    if isinstance(section, list):
        return [_relevant_keys(name, part) for part in section]
    kind = FEATURE_KINDS.get(section.get("kind")) if name == "features" else None
    unrelated = kind.outside_table if kind is not None else _UNRELATED_KEYS.get(name, frozenset())
    return {key: value for key, value in section.items() if key not in unrelated}


def _without_unused_keys(settings: Json) -> Json:
    """Settings without the later keys that have their default."""

    def used(section: Json, kind: type[Section], later: tuple[str, ...]) -> Json:
        unused = {key for key in later if section[key] == kind.model_fields[key].default}
        return {key: value for key, value in section.items() if key not in unused}

    changed = dict(settings)
    for name, (kind, later) in _LATER_KEYS.items():
        part = settings[name]
        changed[name] = [used(p, kind, later) for p in part] if isinstance(part, list) else used(part, kind, later)
    kinds = [FEATURE_KINDS[feature["kind"]] for feature in settings["features"]]
    changed["features"] = [used(f, k, k.later_keys) for f, k in zip(settings["features"], kinds, strict=True)]
    return changed


def _parse_settings(document: Json, source: str) -> TableSettings:
    meaning = parse_document(document, DecidingSections, source, REBUILD_HINT, upgrade=_with_required_keys)
    return TableSettings(document, meaning)


def _with_required_keys(document: Json) -> Json:
    """The document with a value for each required key that does not affect the table.

    Keys that no longer affect the table in the current version are left out: they may differ.
    """
    known = DecidingSections.model_fields
    relevant = {name: _relevant_keys(name, part) if name in known else part for name, part in document.items()}
    logs = relevant.get("logs", {})
    bound = [0] * len(logs["partition"]) if isinstance(logs.get("partition"), list) else 0
    logs = {**logs, "splits": {"train": [bound, bound]}}
    features = [
        FEATURE_KINDS[feature["kind"]].complete_settings(feature) if feature.get("kind") in FEATURE_KINDS else feature
        for feature in relevant.get("features", [])
    ]
    return {**relevant, "logs": logs, "features": features}


def fingerprint(settings: Json) -> str:
    """sha256 of settings; equal settings have equal fingerprints."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def fingerprint_of_ids(settings: Json, files: dict[str, dict[str, int]]) -> str:
    """Fingerprint of everything that decides the ids of values: the files, and the settings without layout and paths.

    Args:
        settings: the document of the table.
        files: files of each partition that the encoders are fitted on, with their sizes in bytes.
    """
    logs = {name: value for name, value in settings["logs"].items() if name != "path"}
    logs["joins"] = [{"key": join["key"]} for join in logs["joins"]]
    return fingerprint({**settings, "logs": logs, "table": None, "files": files})


@dataclass(frozen=True)
class Growth:
    """Scenario values and tasks that were added to earlier settings."""

    scenarios: dict[str, list[int | str]]  # level -> its new values; only levels with new values
    tasks: list[str]

    def __bool__(self) -> bool:
        return bool(self.scenarios or self.tasks)

    def __str__(self) -> str:
        new = [f"{level}={value}" for level, values in self.scenarios.items() for value in values]
        return ", ".join(new + [f"task {name}" for name in self.tasks]) or "nothing"


def growth(old: TableExperiment | DecidingSections, new: TableExperiment | DecidingSections) -> Growth | None:
    """Scenario values and tasks in `new` that are not in `old`; None if scenarios or tasks differ in another way.

    Old values and tasks must still exist in the same order; new ones may be anywhere. A task may exist `only` for some
    scenarios, to which new values may be added. Other sections are not compared.
    """
    levels = [[level.model_copy(update={"values": []}) for level in sections.scenarios] for sections in (old, new)]
    if levels[0] != levels[1]:
        return None
    gained = {}
    for before, after in zip(old.scenarios, new.scenarios, strict=True):
        if [value for value in after.values if value in before.values] != before.values:
            return None
        gained[after.name] = [value for value in after.values if value not in before.values]
    names = [task.name for task in old.tasks]
    if [_without_values(task, gained) for task in new.tasks if task.name in names] != old.tasks:
        return None
    tasks = [task.name for task in new.tasks if task.name not in names]
    return Growth({level: values for level, values in gained.items() if values}, tasks)


def _without_values(task: TaskConfig, gained: dict[str, list[int | str]]) -> TaskConfig:
    """A task as it was before its scenarios gained values: a task may exist for new scenarios as well."""
    only = {
        level: [value for value in values if value not in gained.get(level, ())] for level, values in task.only.items()
    }
    return task.model_copy(update={"only": only})


def table_growth(old: DecidingSections, new: DecidingSections) -> Growth | None:
    """Growth of a table's settings; None if a table made with the old settings cannot be continued."""
    others = [(settings.logs, settings.features, settings.table) for settings in (old, new)]
    return growth(old, new) if others[0] == others[1] else None


def read_settings(table: str) -> TableSettings | None:
    """The settings of a table, written when it was started; None if there is no table.

    Raises:
        UserError: the folder contains something other than a feature table, or settings that cannot be read.
    """
    uri = storage.join(table, SETTINGS)
    document = storage.read_json(uri)
    if document is None:
        foreign = [name for name in storage.list_folder(table) if name not in (SETTINGS, COLUMNS)]
        if foreign:
            raise UserError(
                f"{table} is the folder of the feature table, but it contains {foreign[0]!r} and no readable "
                f"{SETTINGS}: it is not a feature table, or it is damaged. Choose another `name` or "
                f"`table.path`, restore {SETTINGS}, or delete the folder."
            )
        return None
    return _parse_settings(document, uri)


def check_may_continue(table: str, earlier: TableSettings, settings: TableSettings) -> Growth:
    """Growth of the settings since the table was started.

    Raises:
        UserError: the settings differ in another way, or a new task needs what is fitted only when a table is made.
    """
    grown = table_growth(earlier.meaning, settings.meaning)
    if grown is None:
        raise _other_settings(table, earlier.meaning, settings.meaning, REBUILD_HINT)
    for task in settings.meaning.tasks:
        if task.name in grown.tasks and task.quantiles_within is not None:
            raise UserError(
                f"The task {task.name!r} has quantiles_within, which is fitted when a table is made, so that it cannot "
                f"be added to the feature table in {table}: {REBUILD_HINT}, or remove the task."
            )
    return grown


def check_may_overwrite(table: str) -> None:
    """Raises UserError if a folder contains something other than a feature table: overwriting would delete it."""
    content = storage.list_folder(table)
    if content and SETTINGS not in content:
        raise UserError(
            f"--overwrite would delete {table}, which is not a feature table: it contains {content[0]!r} and no "
            f"{SETTINGS}. Choose another `table.path`, or delete the folder yourself."
        )


def check_table_is_of(sections: TableExperiment, table: str, manifest: Manifest) -> None:
    """Checks that a finished table fits an experiment that will read it. The paths of the logs no longer matter.

    Raises:
        UserError: features, scenarios, tasks or layout differ, or a partition is in another split or in no split.
    """
    uri = storage.join(table, SETTINGS)
    document = storage.read_json(uri)
    if document is None:
        raise UserError(f"The feature table in {table} has no readable {SETTINGS}: {REBUILD_HINT}.")
    earlier, settings = _parse_settings(document, uri), TableSettings.of(sections)
    old, new = earlier.without_paths(), settings.without_paths()
    if old != new:
        raise _other_settings(table, old, new, REBUILD_HINT if table_growth(old, new) is None else CONTINUE_HINT)
    check_splits(sections.logs, table, {partition.value: partition.split for partition in manifest.partitions})


def read_table(experiment: TableExperiment) -> Manifest:
    """The manifest of the run's feature table.

    Raises:
        UserError: there is no table, or it was made with other settings.
    """
    manifest = read_manifest(experiment.table_folder)
    check_table_is_of(experiment, experiment.table_folder, manifest)
    return manifest


def check_splits(logs: LogsConfig, table: str, split_of: dict[str, str]) -> None:
    """Raises UserError if a partition of the table is in another split than in the experiment."""
    for value, split in split_of.items():
        wanted = logs.split_of(value)
        if wanted != split:
            where = f"into `{wanted}`" if wanted else "into no split"
            raise UserError(
                f"logs.splits puts {logs.folder_of(value)} {where}, but the feature table in {table} has "
                f"it in `{split}`. Run `manygate preprocess` again, or change the range back."
            )


def _other_settings(table: str, earlier: DecidingSections, settings: DecidingSections, remedy: str) -> UserError:
    changes = list(differences(table_settings(earlier), table_settings(settings), ""))
    shown = "; ".join(changes[:5]) + (f"; and {len(changes) - 5} more" if len(changes) > 5 else "")
    return UserError(
        f"The feature table in {table} was made with other settings: {shown}. To continue, "
        f"{remedy}, revert the experiment, or give it another `name`."
    )


def differences(old: Any, new: Any, path: str) -> Iterator[str]:
    """The differences between two settings, as `path: old -> new`."""
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
    """The parts of a section by key or, for a list of sections, by name."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        return {str(part.get("name", i)): part for i, part in enumerate(value)}
    return None
