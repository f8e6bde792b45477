"""Experiments made from an experiment: variants to compare, and the reference that shows negative transfer."""

import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from models.build import ModelConfig
from pipeline.config.experiment import PRIMARY_METRIC, Experiment
from pipeline.config.load import apply_override, parse_experiment
from pipeline.config.logs import TaskConfig
from pipeline.config.table_experiment import RUN_NAME
from pipeline.errors import UserError
from pipeline.section import nearest

REFERENCE_STEPS = 50
"""Steps that an epoch of a reference has at least, where its batches need not become too small for it."""
SMALLEST_BATCH = 128
REFERENCE = "reference"
"""What the reference is called beside the variants."""


def parse_seeds(text: str) -> list[int]:
    """The seeds of ``0,1,2``.

    Raises:
        UserError: one is no whole number, or stands there twice.
    """
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if not word.isdecimal():
            raise UserError(f"--seeds {text}: {word!r} is no seed: expected whole numbers with commas, such as 0,1,2.")
    seeds = [int(word) for word in words]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {text}: a seed stands there twice, and the same run twice says nothing about noise.")
    return seeds


def make_variants(experiment: Experiment, models: Sequence[tuple[str, str]]) -> dict[str, Experiment]:
    """The variants that the command line asks for, by name, in the order in which they are given.

    Args:
        experiment: what they all start from.
        models: flags with their values: ``("--trunks", "mmoe,ple")``, ``("--variant", "NAME: key=value key=value")``.

    Raises:
        UserError: there is none, two have one name, or one is not a valid experiment.
    """
    if not models:
        raise UserError("Nothing to compare: name models with --trunks mmoe,ple or --variant 'NAME: key=value'.")
    variants: dict[str, Experiment] = {}
    for flag, text in models:
        for name, variant in _trunk_variants(experiment, text) if flag == "--trunks" else [_variant(experiment, text)]:
            if name in variants:
                raise UserError(f"Two variants are called {name!r}: give each a name of its own.")
            variants[name] = variant
    return variants


def _trunk_variants(experiment: Experiment, text: str) -> Iterator[tuple[str, Experiment]]:
    for kind in (word.strip() for word in text.split(",")):
        if kind not in trunk_kinds():
            raise UserError(f"--trunks {text}: there is no trunk {kind!r}; {nearest(kind, trunk_kinds())}.")
        data = written(experiment)
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
        raise UserError(f"--variant {text!r}: {REFERENCE!r} is what --reference is called: use another name.")
    data = written(experiment)
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


def trunk_kinds() -> dict[str, type[BaseModel]]:
    """The config class of every trunk that there is."""
    classes = get_args(ModelConfig.model_fields["trunk"].annotation)
    return {get_args(config.model_fields["kind"].annotation)[0]: config for config in classes}


def trunk_section(experiment: Experiment, kind: str) -> dict[str, Any]:
    """The section of another trunk, with those keys of the experiment's own that somebody wrote and that it has too."""
    known = trunk_kinds()[kind].model_fields
    own = written(experiment)["model"]["trunk"]
    return {"kind": kind} | {key: value for key, value in own.items() if key in known and key != "kind"}


def written(experiment: Experiment) -> dict[str, Any]:
    """The experiment as its file and its overrides have it, without defaults: those of another kind are others."""
    return experiment.model_dump(mode="json", exclude_unset=True)


def single_task_reference(experiment: Experiment, value: int | str, task: TaskConfig) -> Experiment:
    """A single-scenario, single-task DNN: what a task in a scenario reaches when it shares nothing.

    It is the reference for negative transfer: a model of all scenarios and tasks that is below it in a cell shows
    negative transfer there. Its rows are those of the experiment with one value of the first scenario level; levels
    below stay only where they drop rows, so that both are measured on the same rows. Bottom, head and training are
    the experiment's; the trunk is a plain MLP, the task is predicted directly, and the other tasks have no weight.

    Args:
        experiment: what it is held against.
        value: of the first scenario level.
        task: the one that is trained; early stopping goes by its AUC or RMSE.
    """
    level, *below = experiment.scenarios
    data = experiment.model_dump(mode="json")
    dropping = [scenario.model_dump(mode="json") for scenario in below if scenario.other == "drop"]
    data["scenarios"] = [{**level.model_dump(mode="json"), "values": [value], "other": "drop"}, *dropping]
    for section in data["tasks"]:
        section["weight"] = 1.0 if section["name"] == task.name else 0.0
    data["model"].pop("objective", None)  # how tasks are weighed against each other
    data["model"]["trunk"] = trunk_section(experiment, "shared_bottom")
    data["model"]["head"]["conversion"] = "direct"
    if data["training"]["early_stopping"]:
        data["training"]["early_stopping"]["metric"] = f"{task.name}.{PRIMARY_METRIC[task.kind]}"
    return parse_experiment(data, f"The reference of {level.name}={value} and {task.name}")


def with_enough_steps(experiment: Experiment, rows: int, rows_of_all: int) -> Experiment:
    """The reference fitted to its rows: smaller batches where an epoch has too few steps, other numbers in proportion.

    Args:
        experiment: of a reference, with the training of the experiment that it is held against.
        rows: of its train split.
        rows_of_all: of the train split of that experiment. Warm-up and steps between validations stay the same share
            of an epoch.
    """
    training = experiment.training
    size = training.global_batch_size
    while rows < REFERENCE_STEPS * size and size % (2 * experiment.table.lanes) == 0 and size >= 2 * SMALLEST_BATCH:
        size //= 2
    share = (rows / size) / (rows_of_all / training.global_batch_size)
    every, warmup = training.validate_every_steps, training.schedule.warmup_steps
    update = {
        "global_batch_size": size,
        "schedule": training.schedule.model_copy(update={"warmup_steps": round(warmup * share)}),
        "validate_every_steps": None if every is None else max(round(every * share), 1),
    }
    return experiment.model_copy(update={"training": training.model_copy(update=update)})
