"""Keys of tasks for rare and skewed labels: what is refused, and what is part of a table."""

from typing import Any

import pytest

from pipeline.config.load import load_experiment
from pipeline.errors import UserError
from pipeline.sharding.model_inputs import model_inputs
from pipeline.table.settings import TableSettings
from tests.config.test_load import EXAMPLE, override

QUANTILES = "tasks.watch_time.quantiles_within"
PLAIN = ["tasks.watch_time.scale=1", "tasks.watch_time.transform=identity"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["tasks.watch_time.positive_weight=2"],
            r"tasks\.2: `positive_weight` belongs to binary tasks, and 'watch_time' is continuous: remove it",
        ),
        (["tasks.watch_time.focal=2"], r"tasks\.2: `focal` belongs to binary tasks, and 'watch_time' is continuous"),
        (["tasks.click.positive_weight=0"], r"tasks\.0\.positive_weight: input should be greater than 0; found 0"),
        (["tasks.click.positive_weight=-3"], r"tasks\.0\.positive_weight: input should be greater than 0; found -3"),
        (["tasks.click.positive_weight=.inf"], r"tasks\.0\.positive_weight: input should be a finite number"),
        (["tasks.click.positive_weight=.nan"], r"tasks\.0\.positive_weight: input should be "),
        (["tasks.click.positive_weight=null"], r"tasks\.0\.positive_weight: input should be a valid number"),
        (["tasks.click.focal=-0.5"], r"tasks\.0\.focal: input should be greater than or equal to 0; found -0\.5"),
        (["tasks.click.focal=.inf"], r"tasks\.0\.focal: input should be a finite number"),
        (["tasks.click.focal=true"], r"tasks\.0\.focal: "),
        (
            ["tasks.click.loss=focal"],
            r"tasks\.0\.loss: the focal loss is a key of binary tasks.*: `focal: 2`",
        ),
        (["tasks.click.max=1"], r"tasks\.0: `max` belongs to continuous tasks, and 'click' is binary: remove it"),
        (["tasks.watch_time.max=0"], r"tasks\.2: `max` is 0, so that no label could be above 0: use a number above 0"),
        (["tasks.watch_time.max=-1"], r"tasks\.2: `max` is -1, so that no label could be above 0"),
        (["tasks.watch_time.max=.inf"], r"tasks\.2\.max: input should be a finite number"),
        (["tasks.watch_time.max=many"], r"tasks\.2\.max: input should be a valid number"),
        (
            ["tasks.click.relative_to=duration_ms"],
            r"tasks\.0: `relative_to` belongs to continuous tasks, and 'click' is",
        ),
        (
            ["tasks.watch_time.relative_to=play_time_ms"],
            r"tasks\.2: `relative_to` is the task's own column 'play_time_ms': use another column",
        ),
        (
            ["tasks.watch_time.relative_to=is_click"],
            r"tasks\.2\.relative_to: 'is_click' is the label of task 'click', which is not known when",
        ),
        (["tasks.watch_time.relative_to=12"], r"tasks\.2\.relative_to: "),
        (["tasks.click.quantiles_within={column: duration_ms}"], r"tasks\.0: `quantiles_within` belongs to continuous"),
        (
            [f"{QUANTILES}={{column: play_time_ms}}", *PLAIN],
            r"tasks\.2: `quantiles_within\.column` is the task's own column 'play_time_ms': use another column",
        ),
        (
            [f"{QUANTILES}={{column: long_view}}", *PLAIN],
            r"tasks\.2\.quantiles_within\.column: 'long_view' is the label of task 'long_view', which is not known",
        ),
        ([f"{QUANTILES}={{column: duration_ms}}"], r"tasks\.2: `quantiles_within` makes targets from 0 to 1: remove"),
        (
            [f"{QUANTILES}={{column: duration_ms}}", *PLAIN, "tasks.watch_time.relative_to=duration_ms"],
            r"tasks\.2: `relative_to` and `quantiles_within` are two ways to use a duration: remove one of them",
        ),
        (
            [f"{QUANTILES}={{column: duration_ms}}", *PLAIN, "tasks.watch_time.loss=tweedie"],
            r"tasks\.2: loss `tweedie` models amounts, and `quantiles_within` makes quantiles: use another",
        ),
        (
            [f"{QUANTILES}={{column: duration_ms}}", *PLAIN, "tasks.watch_time.loss=lognormal"],
            r"tasks\.2: loss `lognormal` models logarithms, and `quantiles_within` makes quantiles: use another",
        ),
        (
            [f"{QUANTILES}={{column: duration_ms, groups: 0}}", *PLAIN],
            r"quantiles_within\.groups: .*greater than or eq",
        ),
        (
            [f"{QUANTILES}={{column: duration_ms, group: 3}}", *PLAIN],
            r"within\.group: unknown key; did you mean 'groups'",
        ),
        ([f"{QUANTILES}={{groups: 3}}", *PLAIN], r"tasks\.2\.quantiles_within\.column: .*required"),
    ],
)
def test_nonsense_is_one_clear_sentence(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        override(*overrides)
    assert len(str(caught.value).splitlines()) == 2  # the file, and one mistake


@pytest.mark.parametrize("key", [{"positive_weight": 20.0}, {"focal": 2.0}])
def test_the_loss_of_a_binary_task_does_not_change_its_table(key: dict[str, Any]) -> None:
    plain = load_experiment(EXAMPLE)
    changed = override(*(f"tasks.click.{name}={value}" for name, value in key.items()))
    rows = {feature.name: 2 for feature in changed.features}
    loss = model_inputs(changed, rows).tasks[0].loss
    assert loss.model_dump().items() >= key.items()
    old, new = (TableSettings.of(experiment.table_experiment) for experiment in (plain, changed))
    assert old.fingerprint == new.fingerprint


@pytest.mark.parametrize("change", ["max=9e5", "relative_to=duration_ms"])
def test_a_key_of_the_target_changes_the_table_and_tables_without_it_stay_what_they_are(change: str) -> None:
    experiments = override(), override(f"tasks.watch_time.{change}")
    plain, changed = (TableSettings.of(experiment.table_experiment) for experiment in experiments)
    assert plain.fingerprint != changed.fingerprint
    assert all(change.split("=")[0] not in task for task in plain.document["tasks"])
