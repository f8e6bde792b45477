"""Reads evaluations: the documents `evaluation-SPLIT.json`, written by this version or an earlier one."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from models.inputs import TaskKind
from pipeline.documents import Json, parse_document, read_document

Cell = Mapping[str, float | int | None]
"""Metrics and counts over some rows, by name. A metric that is None or missing is undefined."""

ADVICE = "evaluate again with `manygate evaluate EXPERIMENT`"


@dataclass(frozen=True)
class TaskEvaluation:
    """One task: over all rows, and by scenario."""

    kind: TaskKind
    overall: Cell
    scenarios: dict[str, Cell]  # by label, such as "tab=1"


@dataclass(frozen=True)
class ReliabilityCurve:
    """The output of `reliability`."""

    predicted: list[float]
    observed: list[float]
    rows: list[int]


@dataclass(frozen=True)
class LayerUse:
    """The use of one layer's experts, see `ExpertUse.total`."""

    groups: list[str]
    weight: dict[str, list[list[float]]]
    selected: dict[str, list[list[float]]]


@dataclass(frozen=True)
class Evaluation:
    """One split. Keys that only newer versions know are ignored: they do not change the meaning of these."""

    rows: int
    tasks: dict[str, TaskEvaluation]
    split: str = ""
    checkpoint: str = ""
    statistics: dict[str, str] = field(default_factory=dict)  # what a prediction in the log's unit is, such as "mean"
    inputs: str = ""  # see `evaluation_inputs`; empty in evaluations of earlier versions
    given: dict[str, str] = field(default_factory=dict)  # conditional task -> the task whose rows it is measured on
    reliability: dict[str, dict[str, ReliabilityCurve]] = field(default_factory=dict)  # by task, and by cell
    experts: dict[str, LayerUse] = field(default_factory=dict)  # by layer


def read_evaluation(uri: str) -> Evaluation | None:
    """The evaluation in a file; None if there is no file.

    Raises:
        UserError: a newer version has written it, or it is not an evaluation.
    """
    return read_document(uri, Evaluation, ADVICE, upgrade=_from_file)


def parse_evaluation(data: Json) -> Evaluation:
    """The output of `SplitEvaluation` as an `Evaluation`."""
    return parse_document(data, Evaluation, "the evaluation", ADVICE, upgrade=_from_file)


def _from_file(data: Json) -> Json:
    """Moves the metrics of each task, which a file has beside the task's other keys, under `overall`."""
    tasks = {"tasks": {name: _task(task) for name, task in data["tasks"].items()}} if "tasks" in data else {}
    return {**data, **tasks}


def _task(task: Json) -> Json:
    others = {key: value for key, value in task.items() if key in ("kind", "scenarios")}
    return {**others, "overall": {key: value for key, value in task.items() if key not in others}}
