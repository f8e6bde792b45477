"""Changes of training's arithmetic: a run that an earlier version began continues with other numbers.

To add a change, append a `Change` with `since=VERSION` to `CHANGES`; the first change after a release raises `VERSION`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.config.experiment import Experiment

VERSION = 2
"""Of the arithmetic, as `state.json` records it."""


@dataclass(frozen=True)
class Change:
    """A change that gives some experiments other numbers in training."""

    since: int  # the version that has it first
    concerns: Callable[[Experiment], bool]
    text: str  # one sentence for the log, with a capital letter and a full stop


CHANGES: tuple[Change, ...] = (
    Change(
        since=2,
        concerns=lambda experiment: True,
        text="Every row has the same weight in training: a batch with fewer rows, such as the last one of an epoch, "
        "no longer counts as a full one.",
    ),
    Change(
        since=2,
        concerns=lambda experiment: any(task.kind == "binary" for task in experiment.tasks),
        text="The AUC of training has bins that suit rare events: the first one that is logged covers only the steps "
        "after this checkpoint.",
    ),
    Change(
        since=2,
        concerns=lambda experiment: experiment.training.precision == "bf16",
        text="The last layers compute in fp32, also with training.precision=bf16.",
    ),
    Change(
        since=2,
        concerns=lambda experiment: experiment.training.dense_optimizer.weight_decay > 0,
        text="training.dense_optimizer.weight_decay no longer applies to biases, normalisations, learned task weights, "
        "cross-stitch units and STAR's factors.",
    ),
    Change(
        since=2,
        concerns=lambda experiment: experiment.model.trunk.kind == "star",
        text="The normalisation of `star` mixes a scenario's few rows of a batch with its moving moments, and few rows "
        "move these less.",
    ),
    Change(
        since=2,
        concerns=lambda experiment: experiment.model.trunk.kind == "htlnet",
        text="The label embeddings of `htlnet` read P(task) with the head `product`, each tower is computed once, and "
        "evaluation uses the mean of a drawn label.",
    ),
)


def changes_since(version: int, experiment: Experiment) -> list[str]:
    """The sentences of all changes after a version that concern an experiment."""
    return [change.text for change in CHANGES if change.since > version and change.concerns(experiment)]
