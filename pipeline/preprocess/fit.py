"""The first pass: fits encoders on the usable rows of the train split, or extends vocabularies.

each unit: counts of values, summaries of numbers  ->  TABLE/work
each hash range of each vocabulary: merged counts  ->  TABLE/work
each encoder                                       ->  TABLE/encoders; encoders.json is written last and commits them
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.config.table_experiment import TableExperiment
from pipeline.errors import UserError
from pipeline.features import vocabulary
from pipeline.features.encoder_files import generation_folder, read_encoder, write_encoder
from pipeline.features.encoders import FIRST_VALUE_ID
from pipeline.features.group_quantiles import GroupQuantiles, merged
from pipeline.features.sketch import Summary
from pipeline.features.values import Kind, count_values
from pipeline.features.vocabulary import VocabularyConfig
from pipeline.preprocess import units as units_of_work
from pipeline.preprocess.discover import PartitionFiles, report_unreadable
from pipeline.preprocess.encode import load_encoders, table_sizes
from pipeline.preprocess.preprocess_plan import PreprocessPlan
from pipeline.preprocess.rows import judge
from pipeline.preprocess.targets import reference_columns, target_sample
from pipeline.preprocess.tasks import run_tasks
from pipeline.preprocess.units import Unit, UnitRows, cut_units
from pipeline.preprocess.weights import weight_columns
from pipeline.progress_bar import ProgressBar
from pipeline.table.encoder_index import EncoderEntry, EncoderIndex, write_index
from pipeline.table.settings import TableSettings, fingerprint_of_ids
from pipeline.table.target_quantiles import quantiles_name, tasks_with_quantiles
from pipeline.table_folder import ENCODERS, WORK

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitTask:
    """Data that the tasks of this pass share."""

    plan: PreprocessPlan
    generation: int  # of the new vocabularies; encoders of numbers are fitted only in generation 1
    ranges: int
    known: dict[str, pa.Table]  # the current vocabularies; only merging needs them
    rare: dict[str, list[str]]  # files with the current counts of values without an id
    units: list[str]  # names of the partial results, in merge order


def fit_encoders(plan: PreprocessPlan, settings: TableSettings, partitions: list[PartitionFiles]) -> None:
    """Fits all encoders on the partitions of the train split and commits them.

    Args:
        plan: the plan of the run.
        settings: of the table.
        partitions: of the train split.

    Raises:
        UserError: a file cannot be read, or the whole split has no readable rows.
    """
    sections, table = plan.sections, plan.table
    storage.delete_folder(table, WORK)
    storage.delete_folder(table, ENCODERS)
    units = [unit for files in partitions for unit in cut_units(files)]
    known = {name: vocabulary.empty_vocabulary(_id_kind(plan, name)) for name in vocabularies(sections)}
    fit = FitTask(plan, 1, vocabulary.range_count(len(units)), {}, {}, [])
    if known or summaries(sections) or tasks_with_quantiles(sections):
        names, parts = _count(fit, units)
        if not names:
            raise UserError("logs.splits.train: its partitions have no readable rows, so nothing can be fitted.")
        _merge(replace(fit, known=known, units=names))
        for name, summary in summaries(sections).items():
            if summary.is_small:
                write_encoder(table, name, summary.merge(part[name] for part in parts))
    sizes = table_sizes(load_encoders(sections, table, 1))
    for name in vocabularies(sections):
        logger.info("encoder %s: %s rows", name, f"{sizes[name]:,}")
    fitted_on = {files.partition.value: files.sizes for files in partitions}
    lineage = fingerprint_of_ids(settings.document, fitted_on)
    write_index(table, EncoderIndex(encoder_index(plan, sizes), 1, list(fitted_on), lineage))


def extend_encoders(
    plan: PreprocessPlan, index: EncoderIndex, counted: list[str], partitions: list[PartitionFiles]
) -> None:
    """Assigns the next free ids to values of new train partitions that have no id yet, and commits them.

    Args:
        counted: partitions that are already counted in the vocabularies.

    Raises:
        UserError: a file cannot be read.
    """
    sections, table, generation = plan.sections, plan.table, index.generation + 1
    storage.delete_folder(table, WORK)
    storage.delete_folder(storage.join(table, ENCODERS), storage.name(generation_folder(table, generation)))
    units = [unit for files in partitions for unit in cut_units(files)]
    known = {name: _known(plan, name, index.generation) for name in vocabularies(sections)}
    rare = {name: vocabulary.rare_files(table, name, index.generation) for name in known}
    most_rare = max((sum(map(vocabulary.count_rows, files)) for files in rare.values()), default=0)
    ranges = vocabulary.range_count(len(units) + -(-most_rare // units_of_work.UNIT_ROWS))
    fit = FitTask(plan, generation, ranges, {}, rare, [])
    names = _count(fit, units)[0] if known else []
    counted = [*counted, *(files.partition.value for files in partitions)]
    if not names:  # no vocabulary, or no rows
        write_index(table, replace(index, counted=counted))
        return
    _split_rare(fit)
    _merge(replace(fit, known=known, units=names))
    sizes = table_sizes(load_encoders(sections, table, generation))
    for name, before in known.items():
        new = sizes[name] - FIRST_VALUE_ID - len(before)
        logger.info("encoder %s: %s rows, %s of them new", name, f"{sizes[name]:,}", f"{new:,}")
    encoders = {name: replace(encoder, rows=sizes.get(name)) for name, encoder in index.encoders.items()}
    write_index(table, replace(index, encoders=encoders, generation=generation, counted=counted))


def encoder_index(plan: PreprocessPlan, sizes: dict[str, int]) -> dict[str, EncoderEntry]:
    """The entry of each encoder in encoders.json."""
    index = {}
    for feature in plan.sections.features:
        if feature.encoder_name != feature.name:
            continue
        values = feature.encoder_values(plan.sources.kinds)
        index[feature.name] = EncoderEntry(feature.encoder_kind, sizes.get(feature.name), values)
    return index


def vocabularies(sections: TableExperiment) -> dict[str, VocabularyConfig]:
    """The vocabularies, by the name of the feature that owns each."""
    owned = {feature.name: feature.vocabulary for feature in sections.features}
    return {name: settings for name, settings in owned.items() if settings is not None}


def summaries(sections: TableExperiment) -> dict[str, Summary]:
    """How encoders of numbers are fitted, by the name of the feature that owns each."""
    owned = {feature.name: feature.summary for feature in sections.features}
    return {name: summary for name, summary in owned.items() if summary is not None}


def _known(plan: PreprocessPlan, name: str, generation: int) -> pa.Table:
    """The current vocabulary. An empty vocabulary may be of a provisional kind, see `Sources.undecided`."""
    known = read_encoder(plan.table, name, generation)
    return known if len(known) else vocabulary.empty_vocabulary(_id_kind(plan, name))


def _id_kind(plan: PreprocessPlan, name: str) -> Kind:
    """Kind of the values of a vocabulary."""
    kind = next(f for f in plan.sections.features if f.name == name).encoder_values(plan.sources.kinds)
    assert kind is not None, "a vocabulary contains ids"
    return kind


def _count(fit: FitTask, units: list[Unit]) -> tuple[list[str], list[dict[str, pa.Table]]]:
    """First step: counts each unit. Returns the names of the readable units, and the small summaries of each."""
    by_unit: dict[str, dict[str, pa.Table]] = {}
    file_of = {_partial_name(unit): unit.file for unit in units}
    unreadable: set[str] = set()
    what = "fit" if fit.generation == 1 else "extend"
    with ProgressBar(what, sum(unit.rows for unit in units)) as progress:
        for done in run_tasks(count_unit, [unit.item for unit in units], fit, fit.plan.task_memory):
            unit = Unit(**done.item)
            progress.add(unit.rows)
            if done.unreadable is not None:
                report_unreadable(fit.plan.sections.logs, unit.file, done.unreadable)
                unreadable.add(unit.file)
            else:
                by_unit[_partial_name(unit)] = done.result["summaries"]
    # In the order of the units, not the order in which they finished, so that sums are equal to the last bit.
    names = [name for name in file_of if file_of[name] not in unreadable]
    return names, [by_unit[name] for name in names]


def _split_rare(fit: FitTask) -> None:
    """Splits earlier counts into the ranges of this run, as if they were the counts of more units."""
    items = [{"name": name, "number": i} for name, files in fit.rare.items() for i in range(len(files))]
    for _ in run_tasks(split_rare, items, fit, fit.plan.task_memory):
        pass


def split_rare(item: dict[str, Any], fit: FitTask) -> dict[str, Any]:
    """Splits a file of earlier counts into the ranges of this run; a Ray task."""
    name, number = item["name"], item["number"]
    target = _work_file(fit.plan, "counts", name, f"rare-{number:05d}")
    vocabulary.write_partial(target, vocabulary.read_partials([fit.rare[name][number]]), fit.ranges)
    return {}


def _merge(fit: FitTask) -> None:
    sections = fit.plan.sections
    items: list[dict[str, Any]]
    items = [{"name": name, "range": i} for name in vocabularies(sections) for i in range(fit.ranges)]
    if fit.generation == 1:
        items += [{"name": name} for name, summary in summaries(sections).items() if not summary.is_small]
        items += [{"task": task.name} for task in tasks_with_quantiles(sections)]
    for _ in run_tasks(merge_part, items, fit, fit.plan.task_memory):
        pass
    if fit.ranges > 1:
        whole = [{"name": name} for name in vocabularies(sections)]
        for _ in run_tasks(finish_vocabulary, whole, fit, fit.plan.task_memory):
            pass


def fit_columns(plan: PreprocessPlan) -> set[str]:
    """Columns that the first pass reads: those that decide whether a row is usable, and those of fitted encoders."""
    sections, counted = plan.sections, vocabularies(plan.sections)
    columns = {task.column for task in sections.tasks} | {scenario.column for scenario in sections.scenarios}
    columns |= set(sections.logs.keys) | weight_columns(sections) | reference_columns(sections)
    for feature in sections.features:
        is_fitted = feature.encoder_name in counted or feature.summary is not None
        if is_fitted or feature.is_judged(plan.sources.fractional):
            columns |= set(feature.columns)
    return columns


def count_unit(item: dict[str, Any], fit: FitTask) -> dict[str, Any]:
    """Counts one unit; a Ray task.

    Raises:
        Unreadable: the file is damaged.
    """
    plan, unit = fit.plan, Unit(**item)
    sections = plan.sections
    rows = UnitRows(plan, unit, fit_columns(plan))
    kept = judge(sections, plan.sources, rows).kept
    name = _partial_name(unit)
    for encoder in vocabularies(sections):
        seen = [feature.seen_ids(rows, kept) for feature in sections.features if feature.encoder_name == encoder]
        counts = count_values([values for values, _ in seen], [weights for _, weights in seen])
        vocabulary.write_partial(_work_file(plan, "counts", encoder, name), counts, fit.ranges)
    small: dict[str, pa.Table] = {}
    for feature in sections.features if fit.generation == 1 else []:
        if feature.summary is not None:
            part = feature.summary.of(*feature.seen_numbers(rows, kept))
            if feature.summary.is_small:
                small[feature.name] = part
            else:
                _write_part(_work_file(plan, "summaries", feature.name, name), part)
    for task in tasks_with_quantiles(sections) if fit.generation == 1 else []:
        _write_part(_work_file(plan, "targets", task.name, name), target_sample(task, rows, kept))
    return {"summaries": small}


def merge_part(item: dict[str, Any], fit: FitTask) -> dict[str, Any]:
    """Merges one hash range of a vocabulary, or the summaries of a number or a target, over all units; a Ray task."""
    if "task" in item:
        _fit_quantiles(fit, item["task"])
        return {}
    plan, name = fit.plan, item["name"]
    if "range" not in item:
        summary = summaries(plan.sections)[name]
        write_encoder(plan.table, name, summary.merge(_read_parts(plan, "summaries", name, fit.units)))
        return {}
    parts = [*fit.units, *(f"rare-{i:05d}" for i in range(len(fit.rare.get(name, []))))]
    paths = [_work_file(plan, "counts", name, part) for part in parts]
    settings = vocabularies(plan.sections)[name]
    merged, rare = vocabulary.merge_range(paths, item["range"], settings, fit.known[name])
    if plan.sections.table.encoders == "extend":
        vocabulary.write_rare(plan.table, name, fit.generation, item["range"], rare)
    if fit.ranges == 1:
        _finish(fit, name, merged)
    else:
        vocabulary.write_partial(_work_file(plan, "merged", name, f"range-{item['range']:05d}"), merged, 1)
    return {}


def _fit_quantiles(fit: FitTask, name: str) -> None:
    """Fits the quantiles of a task's labels, see `GroupQuantiles`."""
    task = next(task for task in fit.plan.sections.tasks if task.name == name)
    assert task.quantiles_within is not None
    rows = merged(_read_parts(fit.plan, "targets", name, fit.units))
    if not len(rows):
        raise UserError(f"tasks.{name}.quantiles_within: no row of the train split has a label that can be used.")
    GroupQuantiles.fit(rows, task.quantiles_within.groups).write(fit.plan.table, quantiles_name(task))


def finish_vocabulary(item: dict[str, Any], fit: FitTask) -> dict[str, Any]:
    """Merges the ranges of a vocabulary into one order and assigns ids; a Ray task."""
    paths = [_work_file(fit.plan, "merged", item["name"], f"range-{i:05d}") for i in range(fit.ranges)]
    _finish(fit, item["name"], vocabulary.read_partials(paths))
    return {}


def _finish(fit: FitTask, name: str, merged: pa.Table) -> None:
    settings = vocabularies(fit.plan.sections)[name]
    state = vocabulary.extended(fit.known[name], merged, settings)
    vocabulary.write_vocabulary(fit.plan.table, name, fit.generation, state, settings)


def _partial_name(unit: Unit) -> str:
    return f"{unit.partition}-{unit.name}"


def _work_file(plan: PreprocessPlan, folder: str, encoder: str, name: str) -> str:
    return storage.join(plan.table, WORK, folder, encoder, f"{name}.parquet")


def _write_part(path: str, part: pa.Table) -> None:
    with storage.open_output(path) as stream:
        pq.write_table(part, stream)


def _read_parts(plan: PreprocessPlan, folder: str, name: str, units: list[str]) -> Iterator[pa.Table]:
    for unit in units:
        filesystem, path = storage.resolve(_work_file(plan, folder, name, unit))
        yield pq.read_table(path, filesystem=filesystem, partitioning=None)
