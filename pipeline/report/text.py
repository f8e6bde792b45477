"""An evaluation as plain text for a terminal."""

from typing import Any

WIDTH = 110
SHORTEST_LABEL = 16
GAP = "  "
UNDEFINED = "-"

COLUMNS: dict[str, dict[str, str]] = {
    "binary": {
        "auc": "AUC",
        "grouped_auc": "grouped AUC",
        "log_loss": "log loss",
        "calibration": "calibration",
        "rows": "rows",
        "positives": "positives",
        "groups": "groups",
        "groups_skipped": "skipped",
    },
    "continuous": {
        "rmse": "RMSE",
        "mae": "MAE",
        "nrmse": "NRMSE",
        "nmae": "NMAE",
        "spearman": "Spearman",
        "gini": "Gini",
        "calibration": "calibration",
        "mean_label": "label",
        "mean_prediction": "predicted",
        "rows": "rows",
    },
}
"""Key in the evaluation -> heading, for each kind of task, in the order of the columns."""


def format_evaluation(evaluation: dict[str, Any]) -> str:
    """One aligned block a task: a headline, then a line for all rows and one for each scenario.

    Scenario labels are cut where the table would otherwise be wider than 110 columns.
    """
    blocks = [_format_task(name, cell) for name, cell in evaluation["tasks"].items()]
    cells = (cell for task in evaluation["tasks"].values() for cell in (task, *task["scenarios"].values()))
    if any(None in cell.values() for cell in cells):
        blocks.append([f"{UNDEFINED}  undefined: no rows, only one class, or constant values"])
    return "\n\n".join("\n".join(block) for block in blocks)


def _format_task(name: str, cell: dict[str, Any]) -> list[str]:
    columns = {key: heading for key, heading in COLUMNS[cell["kind"]].items() if key in cell}
    lines = [["", *columns.values()]]
    for label, values in {"all": cell, **cell["scenarios"]}.items():
        lines.append([label, *(_format_value(values[key]) for key in columns)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    widths[0] = min(widths[0], max(WIDTH - sum(widths[1:]) - len(GAP) * len(columns), SHORTEST_LABEL))
    aligned = (
        [shorten(label, widths[0]).ljust(widths[0]), *(v.rjust(w) for v, w in zip(values, widths[1:], strict=True))]
        for label, *values in lines
    )
    return [_headline(name, cell), *(GAP.join(line) for line in aligned)]


def _headline(name: str, cell: dict[str, Any]) -> str:
    if cell["kind"] == "continuous":
        return f"{name} (continuous, on the training scale)"
    undefined = cell["scenarios_undefined"]
    note = f", {undefined} without one left out" if undefined else ""
    return f"{name} (binary): mean AUC of scenarios {_format_value(cell['macro_auc'])}{note}"


def _format_value(value: float | int | None) -> str:
    if value is None:
        return UNDEFINED
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def shorten(label: str, width: int) -> str:
    """Cut in the middle: labels of a combination differ at both ends."""
    if len(label) <= width:
        return label
    end = (width - 1) // 2
    return label[: width - 1 - end] + "…" + label[-end:]
