"""The reference of one scenario and one task."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.comparison.references import make_references, single_task_reference, with_enough_steps
from pipeline.config.experiment import Experiment
from tests import synthetic


def experiment(**sections: Any) -> Experiment:
    return synthetic.experiment(Path("x"), **sections)


def test_the_reference_has_one_scenario_and_one_task() -> None:
    base = experiment(training={"early_stopping": {"metric": "click.auc", "patience": 7}})
    buy, value = (single_task_reference(base, 1, base.tasks[i]) for i in (1, 2))
    assert buy.scenarios[0].labels == ["tab=1"]
    assert [task.weight for task in buy.tasks] == [0, 1, 0]
    assert buy.model.trunk.model_dump(exclude={"dropout", "scenario_dim"}) == {"kind": "shared_bottom", "hidden": [16]}
    assert (buy.model.bottom, buy.model.head.conversion) == (base.model.bottom, "direct")
    assert buy.training.early_stopping is not None and value.training.early_stopping is not None
    assert (buy.training.early_stopping.metric, buy.training.early_stopping.patience) == ("buy.auc", 7)
    assert value.training.early_stopping.metric == "value.rmse"
    assert single_task_reference(experiment(), 1, base.tasks[0]).training.early_stopping is None


def test_levels_below_stay_in_the_reference_where_they_drop_rows() -> None:
    """Without the level `card` the reference would be measured on rows that the variants do not see."""
    levels = [
        {"name": "tab", "column": "s", "values": [0, 1]},
        {"name": "card", "column": "a", "values": ["x"], "other": "drop"},
        {"name": "hour", "column": "h", "values": [1]},
    ]
    base = experiment(scenarios=levels)
    reference = single_task_reference(base, 0, base.tasks[0])
    assert [(level.name, level.values, level.other) for level in reference.scenarios] == [
        ("tab", [0], "drop"),
        ("card", ["x"], "drop"),
    ]


@pytest.mark.parametrize(
    ("size", "rows", "expected"),
    [
        (1024, 60_000, 1024),
        (1024, 51_200, 1024),  # exactly 50 steps
        (1024, 51_199, 512),
        (1024, 1_000, 128),  # not below 128, though an epoch has 8 steps
        (64, 1_000, 64),  # already below 128
        (1028, 1_000, 1028),  # half of it is not a multiple of the 4 lanes
        (1000, 1_000, 1000),
    ],
)
def test_the_batch_of_a_reference_leaves_enough_steps(size: int, rows: int, expected: int) -> None:
    lanes = 4 if size == 1028 else 8
    base = experiment(table={"lanes": lanes}, training={"global_batch_size": size})
    assert with_enough_steps(base, rows, 100_000).training.global_batch_size == expected


def test_warm_up_and_validations_of_a_reference_keep_their_share_of_an_epoch() -> None:
    """150 steps per epoch become 75: half the rows in batches of the same size; then 50, a third in smaller ones."""
    training = {"global_batch_size": 1024, "schedule": {"warmup_steps": 50}, "validate_every_steps": 75}
    base = experiment(table={"lanes": 8}, training=training)
    half, small = with_enough_steps(base, 76_800, 153_600).training, with_enough_steps(base, 25_600, 153_600).training
    assert (half.global_batch_size, half.schedule.warmup_steps, half.validate_every_steps) == (1024, 25, 38)
    assert (small.global_batch_size, small.schedule.warmup_steps, small.validate_every_steps) == (512, 17, 25)


def test_a_scenario_has_references_of_the_tasks_that_exist_there() -> None:
    """Rows without a label of a task are the same in its reference, also where a lower level decides."""
    levels = [
        {"name": "tab", "column": "s", "values": [0, 1]},
        {"name": "hour", "column": "h", "values": ["early"]},
        {"name": "card", "column": "k", "values": ["x"]},
    ]
    tasks = [
        {"name": "click", "column": "c", "kind": "binary", "only": {"tab": [1, "other"]}},
        {"name": "buy", "column": "b", "kind": "binary", "after": "click", "only": {"hour": ["early"]}},
        {"name": "value", "column": "v", "kind": "continuous", "after": "buy", "missing": "skip"},
    ]
    base = experiment(scenarios=levels, tasks=tasks, logs={"negatives": {"task": "click", "keep": 0.5}, "weight": "w"})
    references = make_references(base)
    pairs = [(task, tab) for tab in ("tab=0", "tab=1") for task in ("click", "buy", "value")]
    assert list(references) == [pair for pair in pairs if pair != ("click", "tab=0")]
    without, with_click = references["buy", "tab=0"], references["buy", "tab=1"]
    assert [(task.name, task.after, task.only) for task in without.tasks] == [
        ("buy", None, {"hour": ["early"]}),
        ("value", "buy", {}),
    ]
    assert [(task.name, task.after, task.only) for task in with_click.tasks] == [
        ("click", None, {"tab": [1]}),
        ("buy", "click", {"hour": ["early"]}),
        ("value", "buy", {}),
    ]
    assert (without.logs.negatives, with_click.logs.negatives) == (None, base.logs.negatives)
    assert without.logs.weight == "w" and without.tasks[1].missing == "skip"
    assert [level.name for level in with_click.scenarios] == ["tab", "hour"]


def test_quantiles_have_no_references_because_they_would_be_other_quantiles(caplog: pytest.LogCaptureFixture) -> None:
    """The table of a reference has the rows of one scenario only, on which its quantiles would be fitted."""
    tasks = [
        {"name": "click", "column": "c", "kind": "binary"},
        {"name": "value", "column": "v", "kind": "continuous", "quantiles_within": {"column": "a"}},
    ]
    base = experiment(tasks=tasks)
    assert list(make_references(base)) == [("click", "tab=0"), ("click", "tab=1")]
    assert "No references for value: quantiles_within would be fitted on the rows of one scenario" in caplog.text
