"""An evaluation as plain text for a terminal."""

from models.inputs import TaskKind
from pipeline.evaluation.evaluation import Cell, Evaluation, TaskEvaluation
from pipeline.metrics.formatting import UNDEFINED, UNDEFINED_BECAUSE, format_value
from pipeline.metrics.registry import (
    ALL_ROWS,
    LOG_UNIT,
    TRAINING_SCALE,
    ScenarioMetric,
    Unit,
    column_metrics,
    metrics_of,
)

WIDTH = 110
SHORTEST_LABEL = 16
GAP = "  "
COUNTS: dict[tuple[TaskKind, Unit], dict[str, str]] = {
    ("binary", TRAINING_SCALE): {
        "rows": "rows",
        "weight": "weight",
        "positives": "positives",
        "groups": "groups",
        "groups_skipped": "skipped",
    },
    ("continuous", TRAINING_SCALE): {
        "mean_label": "label",
        "mean_prediction": "predicted",
        "rows": "rows",
        "weight": "weight",
    },
    ("continuous", LOG_UNIT): {
        "mean_label_log_unit": "label",
        "mean_prediction_log_unit": "predicted",
        "rows": "rows",
        "weight": "weight",
    },
}
"""Columns to the right of the metrics: key in the evaluation -> heading."""


def format_evaluation(evaluation: Evaluation) -> str:
    """One aligned block per task and unit: a headline, then one line for all rows and one per scenario.

    Scenario labels are cut where the table would otherwise be wider than 110 columns.
    """
    blocks = []
    for name, task in evaluation.tasks.items():
        blocks.append([_headline(name, task, evaluation.given.get(name)), *_format_cells(task, TRAINING_SCALE)])
        if has_log_unit(task):
            about = in_log_unit(evaluation.statistics.get(name))
            blocks.append([f"{name} ({task.kind}, {about})", *_format_cells(task, LOG_UNIT)])
    cells = (cell for task in evaluation.tasks.values() for cell in (task.overall, *task.scenarios.values()))
    if any(None in cell.values() for cell in cells):
        blocks.append([f"{UNDEFINED}  {UNDEFINED_BECAUSE}"])
    return "\n\n".join("\n".join(block) for block in blocks)


def has_log_unit(task: TaskEvaluation) -> bool:
    """Whether an evaluation has the metrics of a task in the log's unit; those of earlier versions have none."""
    return any(metric.name in task.overall for metric in column_metrics(task.kind, LOG_UNIT))


def in_log_unit(statistic: str | None) -> str:
    """What metrics in the log's unit are computed from."""
    return "in the log's unit" + (f"; prediction: {statistic}" if statistic else "")


def _format_cells(task: TaskEvaluation, unit: Unit) -> list[str]:
    metrics = {metric.name: metric.heading for metric in column_metrics(task.kind, unit)}
    columns = {key: heading for key, heading in (metrics | COUNTS[task.kind, unit]).items() if key in task.overall}
    lines = [["", *columns.values()]]
    for label, values in {ALL_ROWS: task.overall, **task.scenarios}.items():
        lines.append([label, *(format_value(values.get(key)) for key in columns)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    widths[0] = min(widths[0], max(WIDTH - sum(widths[1:]) - len(GAP) * len(columns), SHORTEST_LABEL))
    aligned = (
        [shorten(label, widths[0]).ljust(widths[0]), *(v.rjust(w) for v, w in zip(values, widths[1:], strict=True))]
        for label, *values in lines
    )
    return [GAP.join(line) for line in aligned]


def _headline(name: str, task: TaskEvaluation, given: str | None) -> str:
    about = "continuous, on the training scale" if task.kind == "continuous" else "binary"
    about += f", {of_rows(given)}" if given else ""
    metrics = [metric for metric in metrics_of(task.kind) if isinstance(metric, ScenarioMetric)]
    parts = [_over_scenarios(metric, task.overall) for metric in metrics]
    return f"{name} ({about})" + (f": {'; '.join(parts)}" if parts else "")


def of_rows(given: str) -> str:
    """The rows of a conditional task, in words."""
    return f"over the rows with {given}"


def _over_scenarios(metric: ScenarioMetric, overall: Cell) -> str:
    undefined = overall.get(metric.undefined_count)
    note = f" ({undefined} undefined, left out)" if undefined else ""
    return f"{metric.heading} {format_value(overall.get(metric.name))}{note}"


def shorten(label: str, width: int) -> str:
    """Cuts a label in the middle: labels of combinations differ at both ends."""
    if len(label) <= width:
        return label
    end = (width - 1) // 2
    return label[: width - 1 - end] + "…" + label[-end:]
