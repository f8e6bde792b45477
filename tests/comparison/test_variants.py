"""Variants of an experiment."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.comparison.variants import TRUNKS, make_variants, parse_seeds
from pipeline.config.experiment import Experiment
from pipeline.errors import UserError
from tests import synthetic


def experiment(**sections: Any) -> Experiment:
    return synthetic.experiment(Path("x"), **sections)


def trunks(base: Experiment, text: str) -> dict[str, dict[str, Any]]:
    variants = make_variants(base, [("--trunks", text)])
    return {name: variant.model.trunk.model_dump() for name, variant in variants.items()}


def test_another_trunk_takes_over_only_keys_that_were_set() -> None:
    """The experiment sets experts and hidden; dropout has the default of its trunk."""
    base = experiment(model={"trunk": {"kind": "mmoe", "experts": 2, "hidden": [16]}})
    assert trunks(base, "mmoe, shared_bottom") == {
        "mmoe": base.model.trunk.model_dump(),
        "shared_bottom": {"kind": "shared_bottom", "hidden": [16], "dropout": 0.0, "scenario_dim": 8},
    }
    shared = experiment(model={"trunk": {"kind": "shared_bottom", "dropout": 0.1}})
    mmoe = trunks(shared, "mmoe")["mmoe"]
    assert (mmoe["dropout"], mmoe["hidden"], mmoe["experts"]) == (0.1, [256, 128], 8)


def test_every_trunk_makes_a_variant() -> None:
    made = trunks(experiment(), ",".join(TRUNKS))
    assert [trunk["kind"] for trunk in made.values()] == list(made) == list(TRUNKS)
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
def test_mistakes_are_reported(models: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(UserError) as error:
        make_variants(experiment(), models)
    assert message in str(error.value)


def test_seeds() -> None:
    assert parse_seeds("0, 3,1") == [0, 3, 1]
    for text, message in (
        ("0,x", "'x' is not a seed"),
        ("0,,1", "'' is not a seed"),
        ("-1", "'-1'"),
        ("1,01", "twice"),
    ):
        with pytest.raises(UserError, match=message):
            parse_seeds(text)
