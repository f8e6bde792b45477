"""What settings have gained since a table, or a model, was made with them."""

from typing import Any

import pytest

from pipeline.table.settings import Growth, growth, table_growth


def settings(values: list[int | str], tasks: list[str], **more: Any) -> dict[str, Any]:
    return {
        "scenarios": [
            {"name": "channel", "column": "c", "values": ["feed"], "other": "keep"},
            {"name": "tab", "column": "t", "values": values, "other": "keep"},
        ],
        "tasks": [{"name": name, "column": f"{name}ed", "kind": "binary"} for name in tasks],
        **more,
    }


OLD = settings([2, 0], ["click", "buy"])


@pytest.mark.parametrize(
    ("values", "tasks", "expected"),
    [
        ([2, 0], ["click", "buy"], Growth({}, [])),
        ([2, 0, 5], ["click", "buy"], Growth({"tab": [5]}, [])),
        ([7, 2, 5, 0], ["click", "buy"], Growth({"tab": [7, 5]}, [])),
        ([2, 0], ["like", "click", "follow", "buy"], Growth({}, ["like", "follow"])),
        ([2, "0", 0], ["click", "buy", "like"], Growth({"tab": ["0"]}, ["like"])),
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
def test_what_is_gone_or_in_another_order_is_none(values: list[int | str], tasks: list[str]) -> None:
    assert growth(OLD, settings(values, tasks)) is None


def test_other_changes_of_a_level_or_a_task_are_none() -> None:
    for section, key, value in (("scenarios", "other", "drop"), ("scenarios", "column", "d"), ("tasks", "column", "d")):
        new = settings([2, 0, 5], ["click", "buy", "like"])
        new[section][1][key] = value
        assert growth(OLD, new) is None
    new = settings([2, 0, 5], ["click", "buy"])
    del new["scenarios"][0]
    assert growth(OLD, new) is None


def test_a_table_looks_at_the_other_sections_too() -> None:
    old, new = settings([2, 0], ["click"], logs={"path": "a"}), settings([2, 0, 1], ["click"], logs={"path": "a"})
    assert table_growth(old, new) == Growth({"tab": [1]}, [])
    assert table_growth(old, {**new, "logs": {"path": "b"}}) is None
    assert growth(old, {**new, "logs": {"path": "b"}}) == Growth({"tab": [1]}, [])
