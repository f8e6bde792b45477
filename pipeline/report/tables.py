"""The tables of a run's report: metrics by task and scenario, and the comparison of variants."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.evaluation.evaluation import Evaluation, TaskEvaluation
from pipeline.metrics.formatting import NUMBER, UNDEFINED, format_value
from pipeline.metrics.registry import ALL_ROWS, LOG_UNIT, METRICS, TRAINING_SCALE, Metric, Unit, column_metrics
from pipeline.report.comparison import REFERENCE
from pipeline.report.text import has_log_unit, in_log_unit, of_rows

ARROWS = {"higher": "↑", "lower": "↓", "one": "→ 1"}
COLUMNS: dict[Unit, dict[str, str]] = {
    TRAINING_SCALE: {"rows": "rows", "weight": "weight"},
    LOG_UNIT: {
        "mean_label_log_unit": "label",
        "mean_prediction_log_unit": "predicted",
        "rows": "rows",
        "weight": "weight",
    },
}
"""Columns to the right of the metrics: key in the evaluation -> heading."""
DARKEST = 0.45
SMALL = 0.02
"""A column whose differences are all below this share of the overall value is not shaded fully."""


@dataclass(frozen=True)
class ReportCell:
    """One number: its text, its shade (above 0 for better, below 0 for worse), and lines below it.

    Each line below has a flag: whether it is beyond noise.
    """

    text: str
    shade: float = 0.0
    below: tuple[tuple[str, bool], ...] = ()


@dataclass(frozen=True)
class ReportTable:
    """Rows of cells under a title."""

    title: str
    columns: list[str]
    rows: dict[str, list[ReportCell]] = field(default_factory=dict)  # by label
    note: str = ""

    @property
    def has_undefined(self) -> bool:
        return any(cell.text == UNDEFINED for row in self.rows.values() for cell in row)


def metric_tables(evaluation: Evaluation) -> list[ReportTable]:
    """One table per task and unit: all rows, then each scenario, shaded by the difference from all rows."""
    tables = []
    for name, task in evaluation.tasks.items():
        given = evaluation.given.get(name)
        note = of_rows(given) if given else "on the training scale" if task.kind == "continuous" else ""
        tables.append(_metric_table(name, task, TRAINING_SCALE, note))
        if has_log_unit(task):
            tables.append(_metric_table(name, task, LOG_UNIT, in_log_unit(evaluation.statistics.get(name))))
    return tables


def comparison_tables(comparison: Mapping[str, Any]) -> list[ReportTable]:
    """One table per task, with one row per variant and one column per scenario; takes the data of compare.json.

    Variants without a finished seed are left out.
    """
    tables, total = [], len(comparison["seeds"])
    variants = {}
    for name, variant in comparison["variants"].items():
        done = len(variant.get("seeds", comparison["seeds"]))
        if done:
            variants[name if done == total else f"{name} ({done} of {total} seeds)"] = variant["tasks"]
    if comparison.get("reference"):
        variants[REFERENCE] = comparison["reference"]
    for task, metric in comparison["metric_of_task"].items():
        of_variant = {name: of_task.get(task, {}) for name, of_task in variants.items()}
        labels = list(dict.fromkeys(label for cells in of_variant.values() for label in cells))
        rows = {
            variant: [_compared(cells.get(label, {}), metric) for label in labels]
            for variant, cells in of_variant.items()
        }
        if labels:
            tables.append(ReportTable(f"{task}: {heading(METRICS[metric])}", labels, rows))
    return tables


def heading(metric: Metric) -> str:
    """The heading of a metric's column, with an arrow to the better values."""
    return f"{metric.heading} {ARROWS[metric.better]}"


def _metric_table(name: str, task: TaskEvaluation, unit: Unit, note: str) -> ReportTable:
    overall = task.overall
    metrics = [metric for metric in column_metrics(task.kind, unit) if metric.on_page and metric.name in overall]
    shades = [_shades(metric, task) for metric in metrics]
    counts = {key: heading for key, heading in COLUMNS[unit].items() if key in overall}
    rows = {ALL_ROWS: [ReportCell(format_value(overall.get(key))) for key in (*(m.name for m in metrics), *counts)]}
    for label, cell in task.scenarios.items():
        values = [
            ReportCell(format_value(cell.get(metric.name)), shade[label])
            for metric, shade in zip(metrics, shades, strict=True)
        ]
        rows[label] = [*values, *(ReportCell(format_value(cell.get(key))) for key in counts)]
    return ReportTable(name, [*map(heading, metrics), *counts.values()], rows, note)


def _shades(metric: Metric, task: TaskEvaluation) -> dict[str, float]:
    """How much better or worse each scenario is than all rows, with the darkest shade for the largest difference."""
    all_rows = task.overall[metric.name]
    differences = {label: _better_by(metric, cell.get(metric.name), all_rows) for label, cell in task.scenarios.items()}
    if not differences or all_rows is None:
        return dict.fromkeys(differences, 0.0)
    greatest = max([SMALL * abs(all_rows), *(abs(difference) for difference in differences.values())])
    return {label: DARKEST * difference / greatest if greatest else 0.0 for label, difference in differences.items()}


def _better_by(metric: Metric, value: float | None, than: float | None) -> float:
    if value is None or than is None:
        return 0.0
    if metric.better == "one":
        return abs(than - 1) - abs(value - 1)
    return value - than if metric.better == "higher" else than - value


def _compared(cell: Mapping[str, Any], metric: str) -> ReportCell:
    """Mean and spread over seeds; below, the differences to baseline and reference; shaded where beyond noise."""
    mean, std, difference = cell.get("mean"), cell.get("std"), cell.get("difference")
    text = format_value(mean) if std is None or mean is None else f"{format_value(mean)} ± {format_value(std)}"
    below = [] if difference is None else [(f"{difference:+{NUMBER}}", bool(cell.get("beyond_noise")))]
    if cell.get("transfer") is not None:
        below.append((f"transfer {cell['transfer']:+{NUMBER}}", bool(cell.get("transfer_beyond_noise"))))
    is_better = difference is not None and (difference > 0) == (METRICS[metric].better == "higher")
    shade = (DARKEST if is_better else -DARKEST) if cell.get("beyond_noise") else 0.0
    return ReportCell(text, shade, tuple(below))
