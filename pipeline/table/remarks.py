"""What a person should look at in the content of a finished table."""

from difflib import get_close_matches

from pipeline.config.logs import ScenarioConfig, TaskConfig
from pipeline.config.table_experiment import TableExperiment
from pipeline.table.content import OTHER, LevelContent, merged
from pipeline.table.content_text import contradictions, number, percent
from pipeline.table.manifest import Manifest
from pipeline.table.negative_labels import describe_negative_labels
from pipeline.table.settings import DecidingSections
from pipeline.table.split_content import SplitContent

FEW_ROWS = 64
"""A lane file with fewer rows costs more than its rows."""
_MOST = 5


def remarks(sections: TableExperiment | DecidingSections, manifest: Manifest, splits: list[SplitContent]) -> list[str]:
    """One sentence for each thing that is probably not what the experiment intends.

    Args:
        sections: those of a table have no losses, so that nothing is said about negative labels.
        splits: of the manifest.
    """
    lines = []
    for i, level in enumerate(sections.scenarios):
        lines += _about_level(f"scenarios.{i} ({level.name})", level, splits)
    for task in sections.tasks:
        lines += _about_task(task, splits)
    for i, join in enumerate(sections.logs.joins):
        few = [s for s in splits if 2 * s.content.matched[i] < s.rows]
        if few:
            shares = ", ".join(f"{percent(s.content.matched[i], s.rows)} of {s.name}" for s in few)
            lines.append(
                f"logs.joins.{i}: few rows have a row in {join.path} with their {join.key} ({shares}). Check that the "
                "keys of both are written in the same way."
            )
    return lines + _about_lanes(manifest)


def _about_level(where: str, level: ScenarioConfig, splits: list[SplitContent]) -> list[str]:
    lines = []
    if splits and all(split.is_whole for split in splits):
        whole = merged([split.content for split in splits]).scenarios[level.name]
        absent = [value for value in level.values if str(value) not in whole.rows]
        lines += [f"{where}: no row has the value {value!r}. {_hint(level, value, whole)}" for value in absent[:_MOST]]
        if len(absent) > _MOST:
            lines.append(f"{where}: {len(absent) - _MOST} more values have no rows.")
    crowded = []
    for split in splits:
        content = split.content.scenarios[level.name]
        if level.other == "keep":
            rows, of = content.rows.get(OTHER, 0), split.rows
        else:
            rows, of = sum(content.unlisted.values()) + content.unlisted_rest, split.rows + split.filtered
        if 2 * rows > of:
            crowded.append(f"{percent(rows, of)} of {split.name}")
    if crowded:
        place = f"fall into {level.name}={OTHER}" if level.other == "keep" else "are filtered out"
        lines.append(
            f"{where}: most rows have a value that the experiment does not list and {place}: {', '.join(crowded)}."
        )
    return lines


def _hint(level: ScenarioConfig, value: int | str, whole: LevelContent) -> str:
    is_text = isinstance(value, str)
    place = f"now in {level.name}={OTHER}" if level.other == "keep" else "now filtered out"
    by_word: dict[str, str] = {}
    for name in whole.unlisted:
        by_word.setdefault(name.strip().lower(), name)
    close = get_close_matches(str(value).strip().lower(), by_word, n=1)
    if close:
        name = by_word[close[0]]
        return f"Did you mean {repr(name) if is_text else name} ({whole.unlisted[name]:,} rows, {place})?"
    if not whole.unlisted:
        return "Every row has another value of the experiment: remove this one, unless its rows are still to come."
    top = ", ".join(f"{repr(n) if is_text else n} ({rows:,} rows)" for n, rows in list(whole.unlisted.items())[:_MOST])
    return f"The most frequent values that the experiment does not list, {place}: {top}."


def _about_task(task: TaskConfig, splits: list[SplitContent]) -> list[str]:
    lines = []
    for split in splits:
        found = split.content.tasks[task.name]
        if split.is_whole and split.rows and not found.labels:
            lines.append(f"task {task.name}: no row of {split.name} has a label.")
        elif split.is_whole and found.labels and found.weightless == found.labels:
            lines.append(
                f"task {task.name}: every label of {split.name} has the weight 0, so none counts. Check the columns "
                "of logs.weight and sample_weight."
            )
        elif split.is_whole and found.lowest is not None and found.lowest == found.highest:
            lines.append(f"task {task.name}: every label of {split.name} is {number(found.lowest)}.")
    lines += _about_clipped(task, splits)
    if task.after is not None:
        lines += _about_contradictions(task, task.after, splits)
    negative = describe_negative_labels(task, splits)
    return [*lines, negative] if negative else lines


def _about_clipped(task: TaskConfig, splits: list[SplitContent]) -> list[str]:
    found = [(split, split.content.tasks[task.name]) for split in splits]
    shares = [f"{percent(t.clipped, t.labels)} of {s.name}" for s, t in found if 2 * t.clipped > t.labels]
    if not shares or task.max is None:
        return []
    unit = f"the ratio to {task.relative_to}" if task.relative_to is not None else f"the unit of {task.column!r}"
    return [
        f"task {task.name}: most labels are above `max` ({number(task.max)}) and were clipped to it: "
        f"{', '.join(shares)}. It must be in {unit}."
    ]


def _about_contradictions(task: TaskConfig, after: str, splits: list[SplitContent]) -> list[str]:
    found = [split.content.tasks[task.name] for split in splits]
    rows = zip(splits, found, contradictions(task, after, found), strict=True)
    named = [f"{count:,} of {split.name} ({percent(count, of.labels)})" for split, of, count in rows if count]
    if not named:
        return []
    return [
        f"task {task.name}: labels are 1 in rows in which {after} is 0: {', '.join(named)}. A task with `after: "
        f"{after}` can happen only where {after} has happened: check both columns, remove these rows from the log, or "
        "remove `after`."
    ]


def _about_lanes(manifest: Manifest) -> list[str]:
    files = [file for partition in manifest.partitions for lane in partition.lanes for file in lane]
    rows = sum(file.rows for file in files)
    if not files or manifest.lanes == 1 or rows >= FEW_ROWS * len(files):
        return []
    units = {
        (p.split, p.value, f.path.rsplit("/", 1)[-1]) for p in manifest.partitions for lane in p.lanes for f in lane
    }
    fit = 1
    while 2 * fit * FEW_ROWS * len(units) <= rows and 2 * fit < manifest.lanes:
        fit *= 2
    return [
        f"table.lanes: {manifest.lanes} lanes are too many for this log: a lane file has {rows / len(files):.0f} rows "
        f"on average. With table.lanes={fit} there would be enough; run `manygate preprocess EXPERIMENT --overwrite` "
        "then. At most as many workers can train as there are lanes."
    ]
