"""Variants of an experiment, which are compared with each other."""

import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from models.config import TrunkConfig
from models.section import sections_by_kind
from pipeline import storage
from pipeline.config.experiment import Experiment
from pipeline.config.load import apply_override, parse_experiment
from pipeline.config.table_experiment import RUN_NAME
from pipeline.errors import UserError
from pipeline.report.comparison import REFERENCE
from pipeline.section import nearest
from pipeline.table.settings import differences, table_settings

TRUNKS = sections_by_kind(TrunkConfig)


def parse_seeds(text: str) -> list[int]:
    """The seeds of ``0,1,2``.

    Raises:
        UserError: a seed is not a whole number, or appears twice.
    """
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if not word.isdecimal():
            raise UserError(f"--seeds {text}: {word!r} is not a seed: expected whole numbers such as 0,1,2.")
    seeds = [int(word) for word in words]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {text}: a seed appears twice, and the same run twice shows nothing about noise.")
    return seeds


def make_variants(experiment: Experiment, models: Sequence[tuple[str, str]]) -> dict[str, Experiment]:
    """The variants that the command line requests, by name, in the given order.

    Args:
        experiment: all variants start from it.
        models: flags with their values: ``("--trunks", "mmoe,ple")``, ``("--variant", "NAME: key=value key=value")``.

    Raises:
        UserError: there is no variant, two have the same name, or one is not a valid experiment.
    """
    if not models:
        raise UserError("Nothing to compare: name models with --trunks mmoe,ple or --variant 'NAME: key=value'.")
    variants: dict[str, Experiment] = {}
    for flag, text in models:
        for name, variant in _trunk_variants(experiment, text) if flag == "--trunks" else [_variant(experiment, text)]:
            if name in variants:
                raise UserError(f"Two variants are called {name!r}: give each its own name.")
            variants[name] = variant
    return variants


def _trunk_variants(experiment: Experiment, text: str) -> Iterator[tuple[str, Experiment]]:
    for kind in (word.strip() for word in text.split(",")):
        if kind not in TRUNKS:
            raise UserError(f"--trunks {text}: there is no trunk {kind!r}; {nearest(kind, TRUNKS)}")
        data = explicit_settings(experiment)
        data["model"]["trunk"] = trunk_section(experiment, kind)
        yield kind, parse_experiment(data, f"The experiment with the trunk {kind}")


def _variant(experiment: Experiment, text: str) -> tuple[str, Experiment]:
    name, colon, overrides = (part.strip() for part in text.partition(":"))
    if not colon or not re.fullmatch(RUN_NAME, name):
        raise UserError(
            f"--variant {text!r}: expected 'NAME: key=value key=value' with a NAME of letters, digits, '_', '.', '-', "
            "such as 'small: model.trunk.hidden=[64] training.epochs=3'."
        )
    try:
        words = shlex.split(overrides)
    except ValueError as error:
        raise UserError(f"--variant {text!r} cannot be split into key=value words: {error}.") from error
    if name == REFERENCE:
        raise UserError(f"--variant {text!r}: the name {REFERENCE!r} is reserved for --reference: use another name.")
    data = explicit_settings(experiment)
    for word in words:
        apply_override(data, word)
    variant = parse_experiment(data, f"The variant {name}")
    if (variant.name, variant.output, variant.training.seed) != (
        experiment.name,
        experiment.output,
        experiment.training.seed,
    ):
        raise UserError(f"--variant {text!r}: a comparison sets `name`, `output` and `training.seed` itself (--seeds).")
    return name, variant


def trunk_section(experiment: Experiment, kind: str) -> dict[str, Any]:
    """The section of another trunk, with the keys that the experiment sets for its own trunk and that both have."""
    known = TRUNKS[kind].model_fields
    own = explicit_settings(experiment)["model"]["trunk"]
    return {"kind": kind} | {key: value for key, value in own.items() if key in known and key != "kind"}


def explicit_settings(experiment: Experiment) -> dict[str, Any]:
    """The keys that the experiment's file and its overrides set, without defaults, which differ between kinds."""
    return experiment.model_dump(mode="json", exclude_unset=True)


def place_variants(base: Experiment, variants: dict[str, Experiment]) -> dict[str, Experiment]:
    """The variants as runs over the experiment's feature table; their seeds are set later.

    Raises:
        UserError: a variant would need another table.
    """
    for name, variant in variants.items():
        found = [
            *differences(table_settings(base), table_settings(variant), ""),
            *differences(base.logs.model_dump(mode="json"), variant.logs.model_dump(mode="json"), "logs"),
            *differences(base.table.path, variant.table.path, "table.path"),
        ]
        if found:
            raise UserError(
                f"The variant {name} needs another feature table ({'; '.join(dict.fromkeys(found))}), but all models "
                "of a comparison share one: change logs, table, features, scenarios and tasks in the experiment itself."
            )
    folder = storage.join(base.folder, "compare")
    return {name: placed(variant, folder, name, base.table_folder) for name, variant in variants.items()}


def placed(experiment: Experiment, output: str, name: str, table: str) -> Experiment:
    """The experiment as the run `output/name`, over the feature table in the folder `table`."""
    settings = experiment.table.model_copy(update={"path": table})
    return experiment.model_copy(update={"output": output, "name": name, "table": settings})
