"""Growth of settings since a table or a model was made with them."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config.experiment import Experiment
from pipeline.errors import UserError
from pipeline.table.settings import Growth, TableSettings, check_may_continue, growth, table_growth
from tests import synthetic


def settings(
    values: list[int | str], tasks: list[str], keys: dict[str, Any] | None = None, **sections: Any
) -> Experiment:
    """An experiment with these values of the level `tab`, and these tasks with these additional keys."""
    targets: dict[str, Any] = {
        "scenarios": [
            {"name": "channel", "column": "c", "values": ["feed"], "other": "keep"},
            {"name": "tab", "column": "t", "values": values, "other": "keep"},
        ],
        "tasks": [{"name": name, "column": f"{name}ed", "kind": "binary", **(keys or {})} for name in tasks],
    }
    return synthetic.experiment(Path("unused"), **{**targets, **sections})


def test_an_experiment_without_the_later_keys_has_the_fingerprints_of_the_first_versions() -> None:
    """New tables of the same experiment have the same name in all versions: these values are those of version 0.2.0."""
    made = TableSettings.of(synthetic.experiment(Path("x")))
    assert made.fingerprint == "2cc06319d862fb413f4cae7f383cce13d0fcfad0bf5054662710f96656f84a79"
    assert made.made_with == "87c7d552cf1dde593d8634df34dbeaf1aa6a466e4a4d4ddbba0983d0a6f126e7"


@pytest.mark.parametrize("keys", [{"missing": "skip"}, {"only": {"tab": [2]}}, {"sample_weight": "w"}], ids=str)
def test_a_table_notices_that_a_task_has_other_labels_or_weights(keys: dict[str, Any]) -> None:
    before, after = (TableSettings.of(settings([2, 0], ["click"], of_task)) for of_task in ({}, keys))
    assert before.fingerprint != after.fingerprint and before.made_with != after.made_with
    with pytest.raises(UserError, match=r"other settings: tasks.click.\w+(: .+ ->|.tab: added).* --overwrite"):
        check_may_continue("t", before, after)


@pytest.mark.parametrize("keys", [{"weight": "w"}, {"negatives": {"task": "click", "keep": 0.5}}], ids=str)
def test_a_table_notices_that_rows_have_other_weights(keys: dict[str, Any]) -> None:
    before, after = (TableSettings.of(settings([2, 0], ["click"], logs=of_logs)) for of_logs in ({}, keys))
    assert before.fingerprint != after.fingerprint
    with pytest.raises(UserError, match=r"other settings: logs.\w+: null -> .*--overwrite"):
        check_may_continue("t", before, after)


@pytest.mark.parametrize(
    "keys", [{"prediction": "median"}, {"loss": "lognormal"}, {"loss": "huber", "delta": 2}], ids=str
)
def test_a_table_does_not_notice_what_is_predicted_from_its_labels(keys: dict[str, Any]) -> None:
    task = {"kind": "continuous", "transform": "log1p"}
    before, after = (TableSettings.of(settings([2], ["watch"], {**task, **more})) for more in ({}, keys))
    assert before == after and not check_may_continue("t", before, after)


def test_a_task_may_become_part_of_new_scenarios() -> None:
    def only(values: list[int | str], *tabs: int | str) -> Experiment:
        return settings(values, ["buy"], {"only": {"tab": [*tabs]}})

    old = only([2, 0], 2, "other")
    for tabs in ([2, "other"], [2, 5, "other"], [5, 2, "other"]):
        assert growth(old, only([2, 0, 5], *tabs)) == Growth({"tab": [5]}, [])
    for tabs in ([2], [5, "other"], [2, 0, "other"], ["other", 2]):
        assert growth(old, only([2, 0, 5], *tabs)) is None
    assert growth(old, only([2, 0], 2, 0, "other")) is None


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
