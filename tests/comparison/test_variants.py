"""Variants of an experiment, and the reference of one scenario and one task."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.comparison.variants import (
    make_variants,
    parse_seeds,
    single_task_reference,
    trunk_kinds,
    with_enough_steps,
)
from pipeline.config.experiment import Experiment
from pipeline.errors import UserError
from tests import synthetic


def experiment(**sections: Any) -> Experiment:
    return synthetic.experiment(Path("x"), **sections)


def trunks(base: Experiment, text: str) -> dict[str, dict[str, Any]]:
    variants = make_variants(base, [("--trunks", text)])
    return {name: variant.model.trunk.model_dump() for name, variant in variants.items()}


def test_another_trunk_takes_over_what_was_written_and_nothing_else() -> None:
    """The experiment says experts and hidden; dropout is its own default."""
    base = experiment(model={"trunk": {"kind": "mmoe", "experts": 2, "hidden": [16]}})
    assert trunks(base, "mmoe, shared_bottom") == {
        "mmoe": base.model.trunk.model_dump(),
        "shared_bottom": {"kind": "shared_bottom", "hidden": [16], "dropout": 0.0, "scenario_dim": 8},
    }
    shared = experiment(model={"trunk": {"kind": "shared_bottom", "dropout": 0.1}})
    mmoe = trunks(shared, "mmoe")["mmoe"]
    assert (mmoe["dropout"], mmoe["hidden"], mmoe["experts"]) == (0.1, [256, 128], 8)


def test_every_trunk_that_there_is_makes_a_variant() -> None:
    made = trunks(experiment(), ",".join(trunk_kinds()))
    assert [trunk["kind"] for trunk in made.values()] == list(made) == list(trunk_kinds())
    assert all(trunk["hidden"] == [16] for trunk in made.values() if "hidden" in trunk)


def test_variants_and_trunks_keep_their_order() -> None:
    models = [
        ("--variant", "as-it-is:"),
        ("--trunks", "shared_bottom"),
        ("--variant", "wide: 'model.trunk={kind: mmoe}' training.epochs=3"),
    ]
    variants = make_variants(experiment(), models)
    assert list(variants) == ["as-it-is", "shared_bottom", "wide"]
    assert variants["as-it-is"] == experiment()
    assert (variants["wide"].training.epochs, variants["wide"].model.trunk.kind) == (3, "mmoe")
    assert variants["wide"].training.log_every_steps == experiment().training.log_every_steps


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([], "Nothing to compare: name models with --trunks"),
        ([("--trunks", "shared_bottm")], "no trunk 'shared_bottm'; did you mean 'shared_bottom'?"),
        ([("--trunks", "mmoe,mmoe")], "Two variants are called 'mmoe'"),
        ([("--trunks", "mmoe"), ("--variant", "mmoe: training.epochs=3")], "Two variants are called 'mmoe'"),
        ([("--variant", "model.trunk.experts=3")], "expected 'NAME: key=value key=value'"),
        ([("--variant", "my model: training.epochs=3")], "expected 'NAME: key=value key=value'"),
        ([("--variant", "a: model.trunk.experts")], "'model.trunk.experts' is not an override"),
        ([("--variant", "a: model.trunk='{kind: mmoe")], "cannot be split into key=value words"),
        ([("--variant", "a: training.epoch=3")], "did you mean 'epochs'"),
        ([("--variant", "a: model.trunk.kind=mmeo")], "The variant a is not a valid experiment"),
        ([("--variant", "a: training.seed=3")], "sets `name`, `output` and `training.seed` itself"),
        ([("--variant", "a: name=b")], "sets `name`, `output` and `training.seed` itself"),
    ],
)
def test_mistakes_are_told(models: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(UserError) as told:
        make_variants(experiment(), models)
    assert message in str(told.value)


def test_seeds() -> None:
    assert parse_seeds("0, 3,1") == [0, 3, 1]
    for text, message in (("0,x", "'x' is no seed"), ("0,,1", "'' is no seed"), ("-1", "'-1'"), ("1,01", "twice")):
        with pytest.raises(UserError, match=message):
            parse_seeds(text)


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
        (64, 1_000, 64),  # was below already
        (1028, 1_000, 1028),  # half of it is no multiple of the 8 lanes
        (1000, 1_000, 1000),
    ],
)
def test_the_batch_of_a_reference_leaves_enough_steps(size: int, rows: int, expected: int) -> None:
    lanes = 4 if size == 1028 else 8
    base = experiment(table={"lanes": lanes}, training={"global_batch_size": size})
    assert with_enough_steps(base, rows, 100_000).training.global_batch_size == expected


def test_warm_up_and_validations_of_a_reference_keep_their_share_of_an_epoch() -> None:
    """150 steps an epoch become 75: half the rows in batches of the same size; then 50, a third in smaller ones."""
    training = {"global_batch_size": 1024, "schedule": {"warmup_steps": 50}, "validate_every_steps": 75}
    base = experiment(table={"lanes": 8}, training=training)
    half, small = with_enough_steps(base, 76_800, 153_600).training, with_enough_steps(base, 25_600, 153_600).training
    assert (half.global_batch_size, half.schedule.warmup_steps, half.validate_every_steps) == (1024, 25, 38)
    assert (small.global_batch_size, small.schedule.warmup_steps, small.validate_every_steps) == (512, 17, 25)
