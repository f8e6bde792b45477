"""An evaluation as plain text for a terminal."""

from typing import Any

from pipeline.metrics.formatting import UNDEFINED, UNDEFINED_BECAUSE, format_value
from pipeline.metrics.registry import ALL_ROWS, ScenarioMetric, TaskKind, column_metrics, metrics_of

WIDTH = 110
SHORTEST_LABEL = 16
GAP = "  "
COUNTS: dict[TaskKind, dict[str, str]] = {
    "binary": {"rows": "rows", "positives": "positives", "groups": "groups", "groups_skipped": "skipped"},
    "continuous": {"mean_label": "label", "mean_prediction": "predicted", "rows": "rows"},
}
"""Columns to the right of the metrics: key in the evaluation -> heading."""


def format_evaluation(evaluation: dict[str, Any]) -> str:
    """One aligned block a task: a headline, then a line for all rows and one for each scenario.

    Scenario labels are cut where the table would otherwise be wider than 110 columns.
    """
    blocks = [_format_task(name, cell) for name, cell in evaluation["tasks"].items()]
    cells = (cell for task in evaluation["tasks"].values() for cell in (task, *task["scenarios"].values()))
    if any(None in cell.values() for cell in cells):
        blocks.append([f"{UNDEFINED}  {UNDEFINED_BECAUSE}"])
    return "\n\n".join("\n".join(block) for block in blocks)


def _format_task(name: str, cell: dict[str, Any]) -> list[str]:
    kind: TaskKind = cell["kind"]
    metrics = {metric.name: metric.heading for metric in column_metrics(kind)}
    columns = {key: heading for key, heading in (metrics | COUNTS[kind]).items() if key in cell}
    lines = [["", *columns.values()]]
    for label, values in {ALL_ROWS: cell, **cell["scenarios"]}.items():
        lines.append([label, *(format_value(values[key]) for key in columns)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    widths[0] = min(widths[0], max(WIDTH - sum(widths[1:]) - len(GAP) * len(columns), SHORTEST_LABEL))
    aligned = (
        [shorten(label, widths[0]).ljust(widths[0]), *(v.rjust(w) for v, w in zip(values, widths[1:], strict=True))]
        for label, *values in lines
    )
    return [_headline(name, cell), *(GAP.join(line) for line in aligned)]


def _headline(name: str, cell: dict[str, Any]) -> str:
    about = "continuous, on the training scale" if cell["kind"] == "continuous" else "binary"
    parts = [_over_scenarios(metric, cell) for metric in metrics_of(cell["kind"]) if isinstance(metric, ScenarioMetric)]
    return f"{name} ({about})" + (f": {'; '.join(parts)}" if parts else "")


def _over_scenarios(metric: ScenarioMetric, cell: dict[str, Any]) -> str:
    undefined = cell[metric.undefined_count]
    note = f", {undefined} without one left out" if undefined else ""
    return f"{metric.heading} {format_value(cell[metric.name])}{note}"


def shorten(label: str, width: int) -> str:
    """Cut in the middle: labels of a combination differ at both ends."""
    if len(label) <= width:
        return label
    end = (width - 1) // 2
    return label[: width - 1 - end] + "…" + label[-end:]
