"""An evaluation as plain text for a terminal."""

from models.inputs import TaskKind
from pipeline.evaluation.evaluation import Cell, Evaluation, TaskEvaluation
from pipeline.metrics.formatting import UNDEFINED, UNDEFINED_BECAUSE, format_value
from pipeline.metrics.registry import ALL_ROWS, ScenarioMetric, column_metrics, metrics_of

WIDTH = 110
SHORTEST_LABEL = 16
GAP = "  "
COUNTS: dict[TaskKind, dict[str, str]] = {
    "binary": {
        "rows": "rows",
        "weight": "weight",
        "positives": "positives",
        "groups": "groups",
        "groups_skipped": "skipped",
    },
    "continuous": {"mean_label": "label", "mean_prediction": "predicted", "rows": "rows", "weight": "weight"},
}
"""Columns to the right of the metrics: key in the evaluation -> heading."""


def format_evaluation(evaluation: Evaluation) -> str:
    """One aligned block per task: a headline, then one line for all rows and one per scenario.

    Scenario labels are cut where the table would otherwise be wider than 110 columns.
    """
    blocks = [_format_task(name, task, evaluation.given.get(name)) for name, task in evaluation.tasks.items()]
    cells = (cell for task in evaluation.tasks.values() for cell in (task.overall, *task.scenarios.values()))
    if any(None in cell.values() for cell in cells):
        blocks.append([f"{UNDEFINED}  {UNDEFINED_BECAUSE}"])
    return "\n\n".join("\n".join(block) for block in blocks)


def _format_task(name: str, task: TaskEvaluation, given: str | None) -> list[str]:
    metrics = {metric.name: metric.heading for metric in column_metrics(task.kind)}
    columns = {key: heading for key, heading in (metrics | COUNTS[task.kind]).items() if key in task.overall}
    lines = [["", *columns.values()]]
    for label, values in {ALL_ROWS: task.overall, **task.scenarios}.items():
        lines.append([label, *(format_value(values.get(key)) for key in columns)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    widths[0] = min(widths[0], max(WIDTH - sum(widths[1:]) - len(GAP) * len(columns), SHORTEST_LABEL))
    aligned = (
        [shorten(label, widths[0]).ljust(widths[0]), *(v.rjust(w) for v, w in zip(values, widths[1:], strict=True))]
        for label, *values in lines
    )
    return [_headline(name, task, given), *(GAP.join(line) for line in aligned)]


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
