"""What the rows of a table contain, as lines for a terminal: one column per split."""

from pipeline.config.logs import ScenarioConfig, TaskConfig
from pipeline.config.table_experiment import TableExperiment
from pipeline.metrics.formatting import LARGEST_FIXED
from pipeline.table.content import OTHER, TaskContent
from pipeline.table.manifest import Manifest
from pipeline.table.settings import DecidingSections
from pipeline.table.split_content import SplitContent

GAP = "  "


def describe_content(
    sections: TableExperiment | DecidingSections, manifest: Manifest, splits: list[SplitContent], most: int | None
) -> list[str]:
    """Rows per scenario value, label rates, and matches in side tables.

    Args:
        splits: of the manifest.
        most: number of values of a level that are shown; None: all.
    """
    if not splits:
        return []
    table = [["Rows by scenario", *(split.name for split in splits)]]
    table += [["  all", *(f"{split.rows:,}" for split in splits)]]
    for level in sections.scenarios:
        table += _level_lines(level, splits, most)
    table += [["Labels", *("" for _ in splits)]]
    for task in sections.tasks:
        table += _task_lines(task, splits)
    if sections.logs.joins:
        table += [["Rows with a match in a side table", *("" for _ in splits)]]
    for i, join in enumerate(sections.logs.joins):
        shares = (percent(split.content.matched[i], split.rows) for split in splits)
        table += [[f"  {join.path.rsplit('/', 1)[-1]} by {join.key}", *shares]]
    notes = [] if all(split.is_whole for split in splits) else ["Partitions of earlier versions are not counted here."]
    sampled = sum(partition.sampled_out for partition in manifest.partitions)
    if sampled:
        notes.append(
            f"The {sampled:,} negatives of train that logs.negatives left out are not counted: rates are those of the "
            "rows that were kept."
        )
    return _aligned(table) + notes


def percent(part: int, whole: int) -> str:
    """A share that is 0 % or 100 % only if it is exactly that."""
    if not whole:
        return "-"
    text = f"{part / whole:.1%}"
    return {"0.0%": "<0.1%" if part else "0%", "100.0%": "100%" if part == whole else ">99.9%"}.get(text, text)


def _level_lines(level: ScenarioConfig, splits: list[SplitContent], most: int | None) -> list[list[str]]:
    counts = [split.content.scenarios[level.name].rows for split in splits]
    values = [str(value) for value in level.values]
    shown = values
    if most is not None and len(values) > most:
        largest = sorted(values, key=lambda value: -sum(count.get(value, 0) for count in counts))[:most]
        shown = [value for value in values if value in largest]

    def line(label: str, rows: list[int]) -> list[str]:
        cells = (f"{count:,} {percent(count, s.rows):>6}" for count, s in zip(rows, splits, strict=True))
        return [f"  {label}", *cells]

    lines = [line(f"{level.name}={value}", [count.get(value, 0) for count in counts]) for value in shown]
    hidden = [value for value in values if value not in shown]
    if hidden:
        label = f"{level.name}: {len(hidden)} more values"
        lines.append(line(label, [sum(count.get(value, 0) for value in hidden) for count in counts]))
    if level.other == "keep":
        lines.append(line(f"{level.name}={OTHER}", [count.get(OTHER, 0) for count in counts]))
    return lines


def _task_lines(task: TaskConfig, splits: list[SplitContent]) -> list[list[str]]:
    found = [split.content.tasks[task.name] for split in splits]
    lines = []
    if task.kind == "binary":
        lines.append([f"  {task.name}, share of 1", *(percent(t.labels - t.zeros, t.labels) for t in found)])
    else:
        means = (number(t.sum / t.labels) if t.labels else "-" for t in found)
        lines.append([f"  {task.name}, mean", *means])
        lines.append([f"  {task.name}, share of 0", *(percent(t.zeros, t.labels) for t in found)])
    for what, rows in (
        ("negative labels", [t.negative for t in found]),
        *((f"labels 1 where {name} is 0", contradictions(task, name, found)) for name in _counted_after(found)),
        (f"labels above `max` ({number(task.max or 0)}), clipped", [t.clipped for t in found]),
        ("rows without a label", [split.rows - t.labels for split, t in zip(splits, found, strict=True)]),
    ):
        if any(rows):
            lines.append([f"  {task.name}, {what}", *(f"{count:,}" for count in rows)])
    return lines


def _counted_after(found: list[TaskContent]) -> list[str]:
    return list(dict.fromkeys(name for content in found for name in content.after))


def contradictions(task: TaskConfig, other: str, found: list[TaskContent]) -> list[int]:
    """In each split, the rows in which a binary task has the label 1 although another task has the label 0.

    0 if they were not counted: if the task did not come after the other one, or an earlier version made the table.
    """
    counts = [content.after.get(other) if task.kind == "binary" else None for content in found]
    return [count.contradictions if count is not None else 0 for count in counts]


def number(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < LARGEST_FIXED else f"{value:.4g}"


def _aligned(table: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        GAP.join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in table
    ]
