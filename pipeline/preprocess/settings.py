"""The settings that decide the content of a feature table, and their fingerprint."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from pipeline import storage
from pipeline.errors import UserError
from pipeline.preprocess.sections import Sections

SETTINGS = "settings.json"
COLUMNS = "columns.parquet"
"""A Parquet file without rows that has the columns of lane files; with the settings the first that is written."""

# What these say reaches the model or the job, and no file of the table.
_ELSEWHERE = {
    "logs": {"max_quarantined"},
    "features": {"sharding", "dim", "pooling"},
    "tasks": {"weight", "after"},
}


def table_settings(sections: Sections) -> dict[str, Any]:
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
    if fingerprint(earlier) != fingerprint(settings):
        changes = list(differences(earlier, settings, ""))
        shown = "; ".join(changes[:5]) + (f"; and {len(changes) - 5} more" if len(changes) > 5 else "")
        raise UserError(
            f"The feature table in {table} was made with other settings: {shown}. "
            "Pass --overwrite to make it again, or give another `name`."
        )
    return True


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
