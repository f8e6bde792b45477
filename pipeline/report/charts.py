"""The charts of a run's report: numbers in, Plotly figures out, grouped into panels that share a legend.

Figures have no title, legend or text colour. The page adds these, so that they wrap on a narrow screen and follow
light and dark mode; the colours that are chosen here are legible in both modes. Labels come from files and are
escaped, because Plotly reads a label as HTML.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import plotly.graph_objects as go

from pipeline.evaluation.evaluation import LayerUse, ReliabilityCurve
from pipeline.metrics.formatting import NUMBER
from pipeline.metrics.registry import ALL_ROWS, METRICS, PRIMARY, is_better
from pipeline.report.text import shorten

MetricsRecord = dict[str, Any]  # a line of metrics.jsonl
Line = tuple[list[float], list[float]]  # x and y

COLOURS = (
    "#3b7dd8",
    "#d9772b",
    "#2f9e63",
    "#9063cd",
    "#d64550",
    "#1f9aa8",
    "#cf5aa5",
    "#8d8f1f",
    "#a8704a",
    "#7a8698",
)
DASHES = ("solid", "dash", "dot")
GREY = "#7a8698"
FAINT = "rgba(128,128,128,0.22)"
SHADES = [[0, "rgba(59,125,216,0.03)"], [1, "rgba(59,125,216,0.7)"]]  # text of both modes is legible on the darkest
SHOWN_AT_FIRST = 8
LONGEST_LABEL = 22
LABEL_WIDTH, EXPERT_WIDTH = 150, 20
TRAINING = "training"
GRADIENTS = {
    "gradient_norm": "Norm of the gradient",
    "gradient_cosine": "Cosine with the core task's gradient",
    "gradient_conflict": "Share of steps in conflict with the core task",
}


@dataclass(frozen=True)
class Key:
    """The look of a label's line in every chart of a panel. Its entry in the legend shows and hides the line."""

    label: str
    colour: str
    dash: str = "solid"
    width: float = 1.5
    is_on: bool = True


@dataclass(frozen=True)
class Chart:
    """A figure with its title."""

    title: str
    figure: go.Figure
    least_width: int = 0  # in pixels; on a narrower screen it scrolls in its own box


@dataclass(frozen=True)
class Panel:
    """Charts side by side, with one legend for all of them if there is more than one key."""

    charts: list[Chart]
    keys: list[Key] = field(default_factory=list)
    title: str = ""
    columns: int = 3  # where the page is wide enough


def learning_curves(records: Sequence[MetricsRecord], stopping_metric: str | None) -> list[Panel]:
    """The loss of each task while training; then AUC or RMSE of each task, while training and in validations.

    Args:
        records: the lines of metrics.jsonl.
        stopping_metric: chooses the best checkpoint; without it, each chart's own metric marks its best step.
    """
    train = [record for record in records if record["kind"] == "train"]
    valid = [record for record in records if record["kind"] == "valid"]
    tasks = {task: of for record in (*train[-1:], *valid[-1:]) for task, of in record["tasks"].items()}
    cells: dict[str, tuple[str, ...]] = {ALL_ROWS: ()} if valid else {}  # cell -> path in a task's metrics
    measured_tasks = [of for record in valid for of in record["tasks"].values()]
    cells |= {cell: ("scenarios", cell) for of in measured_tasks for cell in of["scenarios"]}
    keys = {TRAINING: Key(TRAINING, GREY, "dot")} | keys_of(cells)
    losses: list[Chart] = []
    measured: list[Chart] = []
    for task, values in tasks.items():
        metric = PRIMARY["binary" if PRIMARY["binary"] in values else "continuous"]
        best = best_step(valid, stopping_metric or f"{task}.{metric}")
        loss = [(keys[TRAINING], _series(train, "tasks", task, "loss"))]
        lines = [(keys[TRAINING], _series(train, "tasks", task, metric))]
        lines += [(keys[cell], _series(valid, "tasks", task, *path, metric)) for cell, path in cells.items()]
        for title, part, of_kind in (("loss while training", loss, losses), (METRICS[metric].heading, lines, measured)):
            if any(steps for _, (steps, _) in part):
                of_kind.append(Chart(f"{task}: {title}", _line_chart(part, best)))
    return [Panel(losses), Panel(measured, list(keys.values()))]


def best_step(valid: Sequence[MetricsRecord], metric: str) -> int | None:
    """The step of the validation that is best by a metric such as ``click.auc``; None where none is defined."""
    best: tuple[float, int] | None = None
    task, _, name = metric.rpartition(".")
    for record in valid:
        value = record["tasks"].get(task, {}).get(name)
        if value is not None and is_better(metric, value, best[0] if best else None):
            best = value, record["step"]
    return best[1] if best else None


def reliability_curves(reliability: Mapping[str, Mapping[str, ReliabilityCurve]]) -> Panel:
    """One chart per task, one curve per scenario."""
    keys = keys_of(cell for cells in reliability.values() for cell in cells)
    charts = []
    for task, cells in reliability.items():
        figure = _figure(height=320, x_title="predicted", y_title="observed")
        shown = [curve for cell, curve in cells.items() if keys[cell].is_on]
        ends = [value for curve in shown for side in (curve.predicted, curve.observed) for value in side]
        if not ends:
            continue
        figure.add_scatter(
            x=[min(ends), max(ends)],
            y=[min(ends), max(ends)],
            mode="lines",
            hoverinfo="skip",
            line=_stroke(GREY, "dash"),
        )
        for cell, curve in cells.items():
            _add_line(figure, keys[cell], (curve.predicted, curve.observed), markers=True)
            figure.data[-1].update(
                customdata=curve.rows,
                hovertemplate=f"<b>%{{fullData.name}}</b><br>predicted %{{x:{NUMBER}}}<br>observed %{{y:{NUMBER}}}"
                "<br>%{customdata:,} rows<extra></extra>",
            )
        charts.append(Chart(task, figure))
    return Panel(charts, list(keys.values()))


def expert_maps(experts: Mapping[str, LayerUse]) -> list[Panel]:
    """One panel per layer, one heat map per group.

    If every row selects every expert, the map of how often they are selected is left out.
    """
    panels = []
    for layer, use in experts.items():
        if not use.weight:  # of a split without rows
            continue
        charts = []
        width = LABEL_WIDTH + EXPERT_WIDTH * len(next(iter(use.weight.values()))[0])
        is_dense = all(value == 1 for cell in use.selected.values() for group in cell for value in group)
        darkest = max((value for cell in use.weight.values() for group in cell for value in group), default=1)
        for number, group in enumerate(use.groups):
            if not is_dense:
                charts.append(Chart(f"{group}: how often selected, %", _heat_map(use.selected, number, 1), width))
            charts.append(Chart(f"{group}: mean weight, %", _heat_map(use.weight, number, darkest), width))
        panels.append(Panel(charts, title=layer, columns=3 if is_dense else 2))
    return panels


@dataclass(frozen=True)
class DiagnosticPanels:
    """The trainer's diagnostics over steps, by the section of the report that they belong to."""

    auxiliary: list[Panel]
    gradients: list[Panel]
    other: list[Panel]


def diagnostic_panels(records: Sequence[MetricsRecord]) -> DiagnosticPanels:
    """Lines of every diagnostic, by name: ``kl/LAYER/PART``, ``noise``, ``gradient_*/TASK``, and any others."""
    train = [record for record in records if record["kind"] == "train"]
    names = dict.fromkeys(name for record in train for name in record.get("diagnostics", {}))
    groups: dict[str, dict[str, Line]] = {}
    for name in names:
        group, _, member = name.rpartition("/")
        series = _series(train, "diagnostics", name)
        groups.setdefault(group or name, {})[member] = series
    divergences = {name[3:]: groups[name] for name in groups if name.startswith("kl/")}
    gradients = {title: groups[name] for name, title in GRADIENTS.items() if name in groups}
    noise = {"Noise of the gates": groups["noise"]} if "noise" in groups else {}
    used = {"noise", *GRADIENTS, *(name for name in groups if name.startswith("kl/"))}
    return DiagnosticPanels(
        auxiliary=[_diagnostics(part) for part in (divergences, noise) if part],
        gradients=[_diagnostics(gradients)] if gradients else [],
        other=[_diagnostics({name: lines}) for name, lines in groups.items() if name not in used],
    )


def comparison_charts(comparison: Mapping[str, Any]) -> Panel:
    """One chart per task: each variant's mean over all rows, and one point per seed; takes the data of compare.json."""
    charts = []
    variants: Mapping[str, Any] = comparison["variants"]
    for task, metric in comparison["metric_of_task"].items():
        rows = [(name, variant["tasks"].get(task, {}).get(ALL_ROWS, {})) for name, variant in variants.items()]
        rows = [(name, cell) for name, cell in rows if cell.get("mean") is not None]
        if not rows:
            continue
        figure = _figure(height=70 + 34 * len(rows), x_title=METRICS[metric].heading)
        points = [
            (value, y) for y, (_, cell) in enumerate(rows) for value in cell.get("values", []) if value is not None
        ]
        template = f"%{{x:{NUMBER}}}<extra></extra>"
        figure.add_scatter(
            x=[value for value, _ in points],
            y=[y for _, y in points],
            mode="markers",
            marker={"color": GREY, "size": 7, "opacity": 0.7},
            hovertemplate="one seed: " + template,
        )
        figure.add_scatter(
            x=[cell["mean"] for _, cell in rows],
            y=list(range(len(rows))),
            mode="markers",
            marker={"color": COLOURS[0], "size": 12, "symbol": "diamond"},
            hovertemplate="mean: " + template,
        )
        _label_rows(figure, [name for name, _ in rows])
        charts.append(Chart(f"{task}: {METRICS[metric].heading} over all rows", figure))
    return Panel(charts)


def keys_of(labels: Iterable[str]) -> dict[str, Key]:
    """One key per label. All rows together get the first colour and the widest line. The first labels are shown."""
    keys = {}
    for number, label in enumerate(dict.fromkeys(labels)):
        cycle, index = divmod(number, len(COLOURS) - 1)  # the last colour is kept for lines that are not compared
        width = 3.0 if label == ALL_ROWS else 1.5
        keys[label] = Key(label, COLOURS[index], DASHES[cycle % len(DASHES)], width, number < SHOWN_AT_FIRST)
    return keys


def _diagnostics(charts: Mapping[str, Mapping[str, Line]]) -> Panel:
    """Charts by title, each with its lines by label."""
    keys = keys_of(label for lines in charts.values() for label in lines)
    panel = Panel([], list(keys.values()))
    for title, lines in charts.items():
        figure = _line_chart([(keys[label], line) for label, line in lines.items()])
        figure.update_yaxes(rangemode="tozero")  # if all values are 0, as conflicts may be, the line is on the axis
        panel.charts.append(Chart(title, figure))
    return panel


def _series(records: Iterable[MetricsRecord], *path: str) -> Line:
    """The numbers under these keys, with their steps; records without such a number are skipped."""
    steps, values = [], []
    for record in records:
        found: Any = record
        for key in path:
            found = found.get(key, {})
        if isinstance(found, int | float):
            steps.append(record["step"])
            values.append(found)
    return steps, values


def _line_chart(lines: Iterable[tuple[Key, Line]], best: int | None = None) -> go.Figure:
    figure = _figure(height=270, x_title="step")
    for key, line in lines:
        _add_line(figure, key, line, markers=len(line[0]) <= 12)
        figure.data[-1].hovertemplate = "<b>%{fullData.name}</b><br>step %{x}: %{y:.5~g}<extra></extra>"
    if best is not None:
        figure.update_layout(margin_t=22)
        figure.add_vline(x=best, line=_stroke(GREY, "dash") | {"width": 1})
        figure.add_annotation(x=best, y=1, yref="paper", yanchor="bottom", text=f"best: {best}", showarrow=False)
    return figure


def _add_line(figure: go.Figure, key: Key, line: Line, markers: bool) -> None:
    figure.add_scatter(
        x=line[0],
        y=line[1],
        name=_text(key.label),
        meta=key.label,  # the page's legend finds the line by it
        mode="lines+markers" if markers else "lines",
        line=_stroke(key.colour, key.dash) | {"width": key.width},
        marker={"size": 3 + key.width},
        visible=key.is_on,
    )


def _heat_map(values: Mapping[str, list[list[float]]], group: int, darkest: float) -> go.Figure:
    """Rows are scenarios, columns are experts; the cells show the values as percentages."""
    cells = [cell[group] for cell in values.values()]
    experts = [f"{number}" for number in range(1, len(cells[0]) + 1)]
    lines = max(label.count("/") for label in values) + 1
    figure = _figure(height=62 + (12 + 14 * lines) * len(cells), x_title="expert")
    labels = [_text(label) for label in values]
    figure.add_heatmap(
        z=cells,
        x=experts,
        text=[[f"{100 * value:.0f}" for value in row] for row in cells],
        texttemplate="%{text}",
        customdata=[[label] * len(experts) for label in labels],
        hovertemplate="<b>%{customdata}</b><br>expert %{x}: %{z:.1%}<extra></extra>",
        colorscale=SHADES,
        zmin=0,
        zmax=darkest or 1,
        showscale=False,
        xgap=2,
        ygap=2,
    )
    _label_rows(figure, list(values))
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(showgrid=False)
    return figure


def _label_rows(figure: go.Figure, labels: list[str]) -> None:
    """Labels rows 0, 1, ... from top to bottom. Rows are numbers, because two labels may be cut to the same text."""
    figure.update_yaxes(
        tickmode="array",
        tickvals=list(range(len(labels))),
        ticktext=["/<br>".join(_text(shorten(part, LONGEST_LABEL)) for part in label.split("/")) for label in labels],
        range=[len(labels) - 0.5, -0.5],
        zeroline=False,
        ticks="",
    )


def _text(label: str) -> str:
    """Escapes a label for Plotly, which knows only the entities for &, < and >."""
    return escape(label, quote=False)


def _figure(height: int, x_title: str, y_title: str | None = None) -> go.Figure:
    figure = go.Figure()
    axis = {"gridcolor": FAINT, "zerolinecolor": FAINT, "linecolor": FAINT, "automargin": True, "ticks": ""}
    figure.update_layout(
        template=None,
        height=height,
        margin={"l": 8, "r": 12, "t": 10, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        showlegend=False,
        hovermode="closest",
        dragmode=False,  # otherwise a finger on a chart could not scroll the page
        hoverlabel={"bgcolor": "#27313f", "bordercolor": "#27313f", "font": {"color": "#ffffff"}},
        xaxis=axis | {"title": {"text": x_title, "standoff": 6}},
        yaxis=axis | ({"title": {"text": y_title, "standoff": 6}} if y_title else {}),
    )
    return figure


def _stroke(colour: str, dash: str) -> dict[str, Any]:
    return {"color": colour, "dash": dash}
