"""Compares evaluations of many models and seeds: noise, differences, negative transfer.

Pure functions of the output of `evaluate`. A cell is "all" or the label of a scenario, such as "tab=1".
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t

from pipeline.evaluation.evaluation import Evaluation
from pipeline.metrics.formatting import UNDEFINED, format_value
from pipeline.metrics.registry import ALL_ROWS, METRICS, PRIMARY

BySeed = Mapping[int, Evaluation]
Values = dict[int, float | None]  # seed -> value

CONFIDENCE = 0.95
REFERENCE = "reference"
"""The name of the reference in the table of variants."""
BETTER, WORSE, NEGATIVE = "▲", "▼", "†"


def compare(
    variants: Mapping[str, BySeed], reference: Mapping[tuple[str, str], BySeed] | None = None
) -> dict[str, Any]:
    """Compares variants with the first of them, the baseline, and with a reference.

    A value that is undefined with any seed makes its cell undefined (None) and unmarked. Differences are paired by
    seed; a difference exceeds noise if the two-sided 95% t interval of its mean excludes 0, which needs two common
    seeds.

    Args:
        variants: evaluations of each variant by seed; the baseline has at least one.
        reference: evaluations of single-scenario, single-task models, by task and cell and by seed.

    Returns:
        ``{"metric_of_task": {TASK: metric}, "baseline": NAME, "seeds": [...], "rows": N, "variants": {NAME: {"seeds":
        [...], "tasks": {TASK: {CELL: {...}}}}}, "reference": {TASK: {CELL: {"mean", "std", "values"}}} or None}``.
        A cell of a variant has metric, mean, std (of the sample; None with one seed) and values in the order of its
        seeds; `difference` (variant - baseline, None for the baseline), `beyond_noise`, and `better`: whether the
        difference, beyond noise or not, is an improvement. `transfer` is the mean of variant - reference, signed so
        that higher is better for every metric: below 0 it is negative transfer.
    """
    baseline = next(iter(variants))
    first = next(iter(variants[baseline].values()))
    # A run that an earlier version has evaluated may lack P(task | after).
    tasks = {name: task for runs in variants.values() for of in runs.values() for name, task in of.tasks.items()}
    metric_of = {name: PRIMARY[task.kind] for name, task in tasks.items()}
    references = {
        (task, cell): _values(runs, task, cell, metric_of[task]) for (task, cell), runs in (reference or {}).items()
    }
    compared: dict[str, Any] = {}
    for name, runs in variants.items():
        compared[name] = {"seeds": sorted(runs), "tasks": {}}
        for task, metric in metric_of.items():
            cells = {}
            for cell in (ALL_ROWS, *tasks[task].scenarios):
                own = _values(runs, task, cell, metric)
                base = _values(variants[baseline], task, cell, metric) if name != baseline else {}
                cells[cell] = _compared(own, base, references.get((task, cell), {}), metric)
            compared[name]["tasks"][task] = cells
    return {
        "metric_of_task": metric_of,
        "baseline": baseline,
        "seeds": sorted({seed for runs in variants.values() for seed in runs}),
        "rows": first.rows,
        "variants": compared,
        "reference": None if reference is None else _by_task(references),
    }


def _compared(own: Values, base: Values, reference: Values, metric: str) -> dict[str, Any]:
    """One cell of a variant, compared with the baseline and the reference; values are empty where one is missing."""
    difference, beyond_noise = paired_difference(own, base)
    transfer, transfer_beyond_noise = paired_difference(own, reference)
    return {
        "metric": metric,
        **_summary(own),
        "difference": difference,
        "beyond_noise": beyond_noise,
        "better": _gain(difference, metric) > 0 if difference else None,
        "transfer": None if transfer is None else _gain(transfer, metric),
        "transfer_beyond_noise": transfer_beyond_noise,
    }


def paired_difference(values: Values, others: Values) -> tuple[float | None, bool | None]:
    """The mean of value - other over the seeds that both have, and whether it exceeds noise.

    It does if ``|mean| > t(0.975, n - 1) * std / sqrt(n)`` of the n differences. Both are None if there is no
    common seed or a value is undefined; the second is also None with one common seed, which shows nothing about noise.
    """
    pairs = [(values[seed], others[seed]) for seed in sorted(values.keys() & others.keys())]
    differences = [value - other for value, other in pairs if value is not None and other is not None]
    if not pairs or None in values.values() or None in others.values():
        return None, None
    mean, n = fmean(differences), len(differences)
    if n == 1:
        return mean, None
    half_width = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * stdev(differences) / math.sqrt(n)
    return mean, abs(mean) > half_width


def _values(runs: BySeed, task: str, cell: str, metric: str) -> Values:
    values: Values = {}
    for seed in sorted(runs):
        measured = runs[seed].tasks.get(task)
        cells = {} if measured is None else {**measured.scenarios, ALL_ROWS: measured.overall}
        values[seed] = cells.get(cell, {}).get(metric)
    return values


def _summary(values: Values) -> dict[str, Any]:
    defined = [value for value in values.values() if value is not None]
    complete = bool(values) and len(defined) == len(values)
    return {
        "mean": fmean(defined) if complete else None,
        "std": stdev(defined) if complete and len(defined) > 1 else None,
        "values": list(values.values()),
    }


def _gain(difference: float, metric: str) -> float:
    return difference if METRICS[metric].better == "higher" else -difference


def _by_task(references: dict[tuple[str, str], Values]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for (task, cell), values in references.items():
        found.setdefault(task, {})[cell] = _summary(values)
    return found


def format_comparison(comparison: dict[str, Any], scenarios: Sequence[str]) -> str:
    """The comparison as Markdown, aligned for a terminal: one block per task, with variants as lines, cells as columns.

    Args:
        comparison: the output of `compare`.
        scenarios: labels of the columns beside "all".
    """
    columns = [ALL_ROWS, *scenarios]
    blocks = [_format_task(comparison, task, metric, columns) for task, metric in comparison["metric_of_task"].items()]
    return "\n\n".join([*blocks, _legend(comparison)])


def _format_task(comparison: dict[str, Any], task: str, metric: str, columns: list[str]) -> str:
    lines = [["", *(column.replace("|", "\\|") for column in columns)]]
    for name, variant in comparison["variants"].items():
        if variant["seeds"]:
            done, total = len(variant["seeds"]), len(comparison["seeds"])
            label = name if done == total else f"{name} ({done} of {total} seeds)"
            lines.append([label, *(_format_cell(variant["tasks"][task].get(column)) for column in columns)])
    if comparison["reference"] is not None:
        cells = comparison["reference"].get(task, {})
        lines.append([REFERENCE, *(_format_cell(cells.get(column)) for column in columns)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    rows = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
    return "\n".join([f"**{task}**: {METRICS[metric].heading}, {METRICS[metric].better} is better", "", *rows])


def _format_cell(cell: dict[str, Any] | None) -> str:
    if cell is None or cell["mean"] is None:
        return UNDEFINED
    text = _short(cell["mean"]) + ("" if cell["std"] is None else f" ±{_short(cell['std'])}")
    marks = ""
    if cell.get("beyond_noise"):
        marks += BETTER if cell["better"] else WORSE
    if cell.get("transfer_beyond_noise") and cell["transfer"] < 0:
        marks += NEGATIVE
    return f"{text} {marks}" if marks else text


def _short(value: float) -> str:
    text = format_value(value)
    return text.removeprefix("0") if text != "0.0000" else text


def _legend(comparison: dict[str, Any]) -> str:
    seeds = ", ".join(map(str, comparison["seeds"]))
    if len(comparison["seeds"]) < 2:
        return f"One seed ({seeds}): the noise is unknown, so nothing is marked."
    lines = [
        f"Mean ± standard deviation over {len(comparison['seeds'])} seeds ({seeds}). {BETTER} better and {WORSE} worse "
        f"than {comparison['baseline']}, beyond noise."
    ]
    if comparison["reference"] is not None:
        lines.append(
            f"{NEGATIVE} negative transfer: worse, beyond noise, than the reference, a model for that scenario and "
            "that task alone."
        )
    lines.append(
        "Beyond noise: paired by seed, the two-sided 95% t interval of the mean difference excludes 0.\n"
        "This is only the noise of training: the test rows are the same for all seeds, and the rows of a small "
        "scenario may favour one model by chance.\n"
        "Even without any real difference, 1 cell in 20 is marked: among many cells, some marks appear by chance."
    )
    return "\n".join(lines)
