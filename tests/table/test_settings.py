"""Growth of settings since a table or a model was made with them."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config.experiment import Experiment
from pipeline.table.settings import Growth, TableSettings, growth, table_growth
from tests import synthetic


def settings(values: list[int | str], tasks: list[str], **sections: Any) -> Experiment:
    targets: dict[str, Any] = {
        "scenarios": [
            {"name": "channel", "column": "c", "values": ["feed"], "other": "keep"},
            {"name": "tab", "column": "t", "values": values, "other": "keep"},
        ],
        "tasks": [{"name": name, "column": f"{name}ed", "kind": "binary"} for name in tasks],
    }
    return synthetic.experiment(Path("unused"), **{**targets, **sections})


OLD = settings([2, 0], ["click", "buy"])


@pytest.mark.parametrize(
    ("values", "tasks", "expected"),
    [
        ([2, 0], ["click", "buy"], Growth({}, [])),
        ([2, 0, 5], ["click", "buy"], Growth({"tab": [5]}, [])),
        ([7, 2, 5, 0], ["click", "buy"], Growth({"tab": [7, 5]}, [])),
        ([2, 0], ["like", "click", "follow", "buy"], Growth({}, ["like", "follow"])),
        ([2, "5", 0], ["click", "buy", "like"], Growth({"tab": ["5"]}, ["like"])),
    ],
)
def test_added_values_and_tasks_are_growth(values: list[int | str], tasks: list[str], expected: Growth) -> None:
    assert growth(OLD, settings(values, tasks)) == expected


@pytest.mark.parametrize(
    ("values", "tasks"),
    [
        ([2], ["click", "buy"]),
        ([0, 2], ["click", "buy"]),
        ([0, 2, 5], ["click", "buy"]),
        (["2", 0], ["click", "buy"]),
        ([2, 0], ["click"]),
        ([2, 0], ["buy", "click"]),
        ([2, 0], ["buy", "like", "click"]),
    ],
)
def test_removed_or_reordered_values_and_tasks_are_not_growth(values: list[int | str], tasks: list[str]) -> None:
    assert growth(OLD, settings(values, tasks)) is None


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("scenarios", "other", "drop"), ("scenarios", "column", "d"), ("tasks", "column", "d"), ("scenarios", None, None)],
)
def test_other_changes_of_a_level_or_a_task_are_not_growth(section: str, key: str | None, value: str | None) -> None:
    grown = settings([2, 0, 5], ["click", "buy", "like"]).model_dump(mode="json")
    parts = grown[section]
    changed = parts[:-1] if key is None else [*parts[:1], {**parts[1], key: value}, *parts[2:]]
    assert growth(OLD, Experiment.model_validate({**grown, section: changed})) is None


def test_growth_of_a_table_compares_the_other_sections_too() -> None:
    grown, elsewhere = settings([2, 0, 1], ["click", "buy"]), {"path": "elsewhere"}
    moved = settings([2, 0, 1], ["click", "buy"], logs=elsewhere)
    assert table_growth(TableSettings.of(OLD).meaning, TableSettings.of(grown).meaning) == Growth({"tab": [1]}, [])
    assert table_growth(TableSettings.of(OLD).meaning, TableSettings.of(moved).meaning) is None
    assert growth(OLD, moved) == Growth({"tab": [1]}, [])
