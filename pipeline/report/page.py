"""A run as one HTML page that needs no network: the contents of the run's folder as text, tables and charts."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from pipeline import storage
from pipeline.config.experiment import Experiment
from pipeline.config.load import read_experiment
from pipeline.errors import UserError
from pipeline.evaluation.evaluation import Evaluation, read_evaluation
from pipeline.metrics.formatting import UNDEFINED, UNDEFINED_BECAUSE, format_value
from pipeline.metrics.registry import ALL_ROWS, METRICS, PRIMARY
from pipeline.report import charts
from pipeline.report import tables as report_tables
from pipeline.report.charts import MetricsRecord, Panel
from pipeline.report.comparison_document import read_comparison
from pipeline.report.tables import ReportTable
from pipeline.run_folder import COMPARISON_FILE, EXPERIMENT_FILE, METRICS_FILE, evaluated_splits, evaluation_file

PAGE = "report.html"
TEMPLATE = "page.html.jinja"


@dataclass(frozen=True)
class ReportedRun:
    """The contents of a run's folder."""

    experiment: Experiment
    experiment_text: str
    records: list[MetricsRecord]  # train and valid lines by step; empty if models were only compared
    evaluations: dict[str, Evaluation]  # by split, test before valid before others
    comparison: Mapping[str, Any] | None


@dataclass(frozen=True)
class ReportSection:
    """A heading, a note on how to read the section, and its tables and charts."""

    anchor: str
    title: str
    note: str
    tables: list[ReportTable] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)
    command: str = ""  # to run if the content is missing


def write_report(folder: str) -> str:
    """Writes `report.html` into a run's folder and returns its path or URI.

    Raises:
        UserError: the folder holds no run that was trained.
    """
    page = storage.join(folder, PAGE)
    storage.write_text(page, render(read_run(folder)))
    return page


def is_report_current(folder: str) -> bool:
    """Whether the report is newer than every file that it shows."""
    names = [METRICS_FILE, COMPARISON_FILE, EXPERIMENT_FILE]
    files = [storage.join(folder, name) for name in names]
    files += [evaluation_file(folder, split) for split in evaluated_splits(folder)]
    written = storage.modified(storage.join(folder, PAGE))
    times = [storage.modified(file) for file in files if storage.exists(file)]
    return written is not None and all(time is not None and time < written for time in times)


def read_run(folder: str) -> ReportedRun:
    """Reads a run, with its evaluations and its comparison if they exist.

    Raises:
        UserError: it was never trained, or has not reached its first log line, and nothing was compared.
    """
    metrics = storage.join(folder, METRICS_FILE)
    records = _records(storage.read_text(metrics, errors="replace")) if storage.exists(metrics) else []
    comparison = read_comparison(storage.join(folder, COMPARISON_FILE))
    if not records and comparison is None:
        raise UserError(
            f"There is nothing to report on in {folder}: no training has written a line of metrics.jsonl there. Run "
            "`manygate train EXPERIMENT` first, or give the `name` and `output` of a run that was trained."
        )
    file = storage.join(folder, EXPERIMENT_FILE)
    return ReportedRun(read_experiment(file), storage.read_text(file), records, _evaluations(folder), comparison)


def render(run: ReportedRun) -> str:
    """The page. All text from the run's files is escaped; scripts and styles are inline."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    shown = sections(run)
    figures = [chart.figure.to_json() for section in shown for panel in section.panels for chart in panel.charts]
    return environment.get_template(TEMPLATE).render(
        name=run.experiment.name,
        all_rows=ALL_ROWS,
        facts=headline(run),
        sections=shown,
        experiment=run.experiment_text,
        # "<" could end the script that holds it.
        figures=Markup("[" + ",\n".join(figures).replace("<", "\\u003c") + "]"),  # noqa: S704
        plotly=Markup(get_plotlyjs()),  # noqa: S704 - a library's own script
    )


def headline(run: ReportedRun) -> dict[str, str]:
    """The kind of model and the main results, by label."""
    model = run.experiment.model
    facts = {"Steps": f"{run.records[-1]['step']:,}"} if run.records else {}
    facts |= {"Bottom": model.bottom.kind, "Trunk": model.trunk.kind, "Head": model.head.kind}
    for split, evaluation in list(run.evaluations.items())[:1]:
        facts |= {
            "Split": split,
            "Rows": f"{evaluation.rows:,}",
            "Checkpoint": storage.name(evaluation.checkpoint),
        }
        for name, task in evaluation.tasks.items():
            metric = METRICS[PRIMARY[task.kind]]
            facts[f"{name} {metric.heading}"] = format_value(task.overall.get(metric.name))
    return facts


def sections(run: ReportedRun) -> list[ReportSection]:
    """The sections that the run has data for, in the order of the page. The section of metrics is always included."""
    diagnostics = charts.diagnostic_panels(run.records)
    stopping = run.experiment.training.early_stopping
    possible = [
        _metrics(run.evaluations),
        ReportSection(
            "learning",
            "Learning curves",
            "Loss and AUC while training are means since the previous log line; validations measure the whole valid "
            "split, over all rows and by scenario. A dashed line marks the best validation"
            + (f" by {stopping.metric}." if stopping else " of each task."),
            panels=charts.learning_curves(run.records, stopping.metric if stopping else None) if run.records else [],
        ),
        ReportSection(
            "calibration",
            "Calibration",
            "Each point is a bin; all bins have about the same number of rows or, if rows have "
            "weights, the same weight. The horizontal axis is the mean "
            "prediction, the vertical axis the mean label, on the training scale. On the dashed diagonal predictions "
            "are right on average; below it they are too high.",
            panels=_of_splits(
                {split: of.reliability for split, of in run.evaluations.items()},
                lambda curves: [charts.reliability_curves(curves)],
            ),
        ),
        ReportSection(
            "experts",
            "Use of the experts",
            "Each row is a scenario, each column an expert that it can use (for ple first the task's own experts and "
            "then the shared ones, for hmoe the task's own experts). Numbers are percentages, averaged over the "
            "scenario's rows of the log. Where two rows differ, the scenarios use different experts; where they are "
            "alike, the scenarios share experts.",
            panels=_of_splits({split: of.experts for split, of in run.evaluations.items()}, charts.expert_maps),
        ),
        ReportSection(
            "auxiliary",
            "Auxiliary losses",
            "KL divergences of the selected experts' gates: to the gate of an expert that only that scenario (or task) "
            "uses, and to the gate of an expert that all share. They fall as experts find their roles. The noise is "
            "the standard deviation of the noise that is added to the gates.",
            panels=diagnostics.auxiliary,
        ),
        ReportSection(
            "gradients",
            "Gradients of the tasks",
            "At the shared embedding; means since the previous log line. A cosine below 0 is a conflict: a step that "
            "helps this task harms the core task.",
            panels=diagnostics.gradients,
        ),
        ReportSection(
            "diagnostics",
            "Other diagnostics",
            "The other values that the model reports while it trains: means since the previous log line.",
            panels=diagnostics.other,
        ),
        _comparison(run.comparison),
    ]
    return [
        section for section in possible if section.command or section.tables or any(p.charts for p in section.panels)
    ]


def _metrics(evaluations: Mapping[str, Evaluation]) -> ReportSection:
    title = "Metrics"
    if not evaluations:
        return ReportSection(
            "metrics", title, "This run has not been evaluated yet:", command="manygate evaluate EXPERIMENT"
        )
    tables = []
    for split, evaluation in evaluations.items():
        for table in report_tables.metric_tables(evaluation):
            tables.append(replace(table, title=f"{table.title}, {split} split"))
    note = (
        "Green is better than over all rows, orange is worse; the largest difference in a column is the darkest. "
        "Calibration is predicted / observed, best near 1."
    )
    if len(evaluations) > 1:
        note += "".join(
            f" {split.capitalize()} split: {of.rows:,} rows, checkpoint {storage.name(of.checkpoint)}."
            for split, of in evaluations.items()
        )
    if any(table.has_undefined for table in tables):
        note += f" {UNDEFINED} means {UNDEFINED_BECAUSE}."
    return ReportSection("metrics", title, note, tables=tables)


def _comparison(comparison: Mapping[str, Any] | None) -> ReportSection:
    if comparison is None:
        return ReportSection("comparison", "Comparison", "")
    seeds, split = comparison["seeds"], comparison["split"]
    note = f"Over all rows and by scenario of the {split} split. In the charts a point is a seed, a diamond the mean. "
    if len(seeds) < 2:
        note += f"Below a value is its difference from {comparison['baseline']}; with one seed the noise is unknown."
    else:
        note += (
            f"Mean ± standard deviation over {len(seeds)} seeds, and below it the difference from "
            f"{comparison['baseline']}: green is better and orange is worse, beyond noise; bold is beyond noise."
        )
    tables = report_tables.comparison_tables(comparison)
    texts = [text for table in tables for row in table.rows.values() for cell in row for text, _ in cell.below]
    if any(text.startswith("transfer") for text in texts):
        note += (
            " Transfer is the gain over the reference, a model for that scenario and task alone; below 0 it is a loss."
        )
    return ReportSection("comparison", "Comparison", note, tables, [charts.comparison_charts(comparison)])


def _of_splits(details: Mapping[str, Any], draw: Callable[[Any], list[Panel]]) -> list[Panel]:
    """Panels of the details of evaluations, by split; evaluations of early versions have no details."""
    panels = []
    for split, detail in details.items():
        for panel in draw(detail) if detail else []:
            panels.append(replace(panel, title=", ".join(filter(None, [panel.title, f"{split} split"]))))
    return panels


def _records(text: str) -> list[MetricsRecord]:
    """The train and valid lines; a line that a kill has cut off, or that is damaged, is left out."""
    records = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
            is_shown = record["kind"] in ("train", "valid") and {"step", "tasks"} <= record.keys()
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if is_shown:
            records.append(record)
    return records


def _evaluations(folder: str) -> dict[str, Evaluation]:
    splits = sorted(evaluated_splits(folder), key=lambda split: (split != "test", split != "valid", split))
    read = {split: read_evaluation(evaluation_file(folder, split)) for split in splits}
    return {split: evaluation for split, evaluation in read.items() if evaluation is not None}
