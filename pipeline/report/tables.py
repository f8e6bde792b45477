"""The tables of a run's report: metrics by task and scenario, and the comparison of variants."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.evaluation.split_metrics import METRICS
from pipeline.report.comparison import REFERENCE
from pipeline.report.text import COLUMNS

UNDEFINED = "–"
ARROWS = {"higher": "↑", "lower": "↓", "one": "→ 1"}
SHOWN = {
    "binary": ("auc", "grouped_auc", "log_loss", "calibration", "rows"),
    "continuous": ("rmse", "mae", "spearman", "gini", "calibration", "rows"),
}
DARKEST = 0.45
SMALL = 0.02
"""A column is not shaded fully for differences below this share of the overall value."""


@dataclass(frozen=True)
class ReportCell:
    """One number: its text, how strongly it is shaded as better (or worse, below 0), and lines below it.

    A line below is sure where it is beyond noise.
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


def metric_tables(evaluation: Mapping[str, Any]) -> list[ReportTable]:
    """A table a task: all rows, then each scenario, shaded by the difference to all rows."""
    return [_metric_table(task, overall) for task, overall in evaluation["tasks"].items()]


def comparison_tables(comparison: Mapping[str, Any]) -> list[ReportTable]:
    """A table a task: a row a variant, a column a scenario; takes what compare.json holds.

    Variants that have no seed yet are left out.
    """
    tables, asked = [], len(comparison["seeds"])
    variants = {}
    for name, variant in comparison["variants"].items():
        done = len(variant.get("seeds", comparison["seeds"]))
        if done:
            variants[name if done == asked else f"{name} ({done} of {asked} seeds)"] = variant["tasks"]
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
            tables.append(ReportTable(f"{task}: {metric.upper()} {ARROWS[METRICS[metric]]}", labels, rows))
    return tables


def format_value(value: float | int | None) -> str:
    """A metric or a count as the report writes it."""
    if value is None:
        return UNDEFINED
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _metric_table(task: str, overall: Mapping[str, Any]) -> ReportTable:
    kind = overall["kind"]
    metrics = [metric for metric in SHOWN[kind] if metric in overall]
    columns = [
        f"{COLUMNS[kind][metric]} {ARROWS[METRICS[metric]]}" if metric in METRICS else metric for metric in metrics
    ]
    rows = {"all": [ReportCell(format_value(overall[metric])) for metric in metrics]}
    shades = {metric: _shades(metric, overall) for metric in metrics if metric in METRICS}
    for label, cell in overall["scenarios"].items():
        rows[label] = [
            ReportCell(format_value(cell[metric]), shades[metric][label] if metric in METRICS else 0.0)
            for metric in metrics
        ]
    note = "on the training scale" if kind == "continuous" else ""
    return ReportTable(task, columns, rows, note)


def _shades(metric: str, overall: Mapping[str, Any]) -> dict[str, float]:
    """How much better or worse each scenario is than all rows, the greatest difference being the darkest."""
    differences = {
        label: _better_by(metric, cell[metric], overall[metric]) for label, cell in overall["scenarios"].items()
    }
    if not differences or overall[metric] is None:
        return dict.fromkeys(differences, 0.0)
    greatest = max([SMALL * abs(overall[metric]), *(abs(difference) for difference in differences.values())])
    return {label: DARKEST * difference / greatest if greatest else 0.0 for label, difference in differences.items()}


def _better_by(metric: str, value: float | None, than: float | None) -> float:
    if value is None or than is None:
        return 0.0
    if METRICS[metric] == "one":
        return abs(than - 1) - abs(value - 1)
    return value - than if METRICS[metric] == "higher" else than - value


def _compared(cell: Mapping[str, Any], metric: str) -> ReportCell:
    """Mean and spread over seeds; below, the differences to baseline and reference; shaded where beyond noise."""
    mean, std, difference = cell.get("mean"), cell.get("std"), cell.get("difference")
    text = format_value(mean) if std is None or mean is None else f"{mean:.4f} ± {std:.4f}"
    below = [] if difference is None else [(f"{difference:+.4f}", bool(cell.get("beyond_noise")))]
    if cell.get("transfer") is not None:
        below.append((f"transfer {cell['transfer']:+.4f}", bool(cell.get("transfer_beyond_noise"))))
    is_better = difference is not None and (difference > 0) == (METRICS[metric] == "higher")
    shade = (DARKEST if is_better else -DARKEST) if cell.get("beyond_noise") else 0.0
    return ReportCell(text, shade, tuple(below))
