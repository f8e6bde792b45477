"""The first pass: encoders are fitted on the rows of the train split that can be used, or vocabularies extended.

each unit: counts, points and moments   ->  TABLE/work
each vocabulary and hash range: merged  ->  TABLE/work
each encoder                            ->  TABLE/encoders; encoders.json is written last and commits them
"""

import logging
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import storage
from pipeline.config.features import FIRST_VALUE_ID, Categorical, Multivalued, Numeric, Sequence, Vocabulary
from pipeline.errors import UserError
from pipeline.preprocess import units as units_of_work
from pipeline.preprocess import vocabulary
from pipeline.preprocess.discover import PartitionFiles, report_unreadable
from pipeline.preprocess.encode import (
    ENCODERS,
    EncoderIndex,
    generation_folder,
    load_encoders,
    read_encoder,
    read_lists,
    table_sizes,
    transformed,
    write_encoder,
    write_index,
)
from pipeline.preprocess.plan import PreprocessPlan
from pipeline.preprocess.progress_bar import ProgressBar
from pipeline.preprocess.rows import judge
from pipeline.preprocess.sections import Sections
from pipeline.preprocess.sketch import Moments, Points, bucket_edges, merge, summarize
from pipeline.preprocess.sources import features_of_table, table_kind, uses
from pipeline.preprocess.tasks import run_tasks
from pipeline.preprocess.units import Unit, UnitRows, cut_units
from pipeline.preprocess.values import IdArray, as_ids, as_numbers, count_values
from pipeline.table.settings import fingerprint, table_settings, without_paths

logger = logging.getLogger(__name__)

WORK = "work"


@dataclass(frozen=True)
class FitTask:
    """What the tasks of this pass share."""

    plan: PreprocessPlan
    generation: int  # of the vocabularies that are made; of the first also numbers are fitted
    ranges: int
    known: dict[str, pa.Table]  # the vocabularies so far; only merging needs them
    rare: dict[str, list[str]]  # files with the counts so far of values without an id
    units: list[str]  # names of the partial results, in the order that they are merged in


def fit_encoders(plan: PreprocessPlan, partitions: list[PartitionFiles]) -> None:
    """Fits all encoders on the partitions of the train split and commits them.

    Raises:
        UserError: a file cannot be read, or none of the split can.
    """
    sections, table = plan.sections, plan.table
    storage.delete_folder(storage.join(table, WORK))
    storage.delete_folder(storage.join(table, ENCODERS))
    units = [unit for files in partitions for unit in cut_units(files)]
    known = {
        name: vocabulary.empty_vocabulary(table_kind(sections, plan.sources, name)) for name in vocabularies(sections)
    }
    fit = FitTask(plan, 1, vocabulary.range_count(len(units)), {}, {}, [])
    if any(is_fitted(feature) for feature in sections.features):
        moments, names = _count(fit, units)
        if not names:
            raise UserError(
                "logs.splits.train: its partitions have no rows that can be read, so nothing can be fitted."
            )
        _merge(replace(fit, known=known, units=names))
        for name, moment in moments.items():
            write_encoder(table, name, pa.table({"mean": [moment.mean], "deviation": [moment.deviation]}))
    sizes = table_sizes(sections, load_encoders(sections, table, 1))
    for name in vocabularies(sections):
        logger.info("encoder %s: %s rows", name, f"{sizes[name]:,}")
    fitted_on = {files.partition.value: files.sizes for files in partitions}
    decisive = {**without_paths(table_settings(sections)), "table": None}  # how rows are laid out decides no id
    lineage = fingerprint({**decisive, "files": fitted_on})
    write_index(table, EncoderIndex(encoder_index(plan, sizes), 1, list(fitted_on), lineage))


def extend_encoders(
    plan: PreprocessPlan, index: EncoderIndex, counted: list[str], partitions: list[PartitionFiles]
) -> None:
    """Gives ids to values of new train partitions that have none, after the ids that exist, and commits them.

    Args:
        counted: partitions that the vocabularies have counted before.

    Raises:
        UserError: a file cannot be read.
    """
    sections, table, generation = plan.sections, plan.table, index.generation + 1
    storage.delete_folder(storage.join(table, WORK))
    storage.delete_folder(generation_folder(table, generation))
    units = [unit for files in partitions for unit in cut_units(files)]
    known = {name: read_encoder(table, name, index.generation) for name in vocabularies(sections)}
    rare = {name: vocabulary.rare_files(table, name, index.generation) for name in known}
    most_rare = max((sum(map(vocabulary.count_rows, files)) for files in rare.values()), default=0)
    ranges = vocabulary.range_count(len(units) + -(-most_rare // units_of_work.UNIT_ROWS))
    fit = FitTask(plan, generation, ranges, {}, rare, [])
    names = _count(fit, units)[1] if known else []
    counted = [*counted, *(files.partition.value for files in partitions)]
    if not names:  # no vocabulary, or no rows
        write_index(table, replace(index, counted=counted))
        return
    _split_rare(fit)
    _merge(replace(fit, known=known, units=names))
    sizes = table_sizes(sections, load_encoders(sections, table, generation))
    for name, before in known.items():
        new = sizes[name] - FIRST_VALUE_ID - len(before)
        logger.info("encoder %s: %s rows, %s of them new", name, f"{sizes[name]:,}", f"{new:,}")
    encoders = {name: {**encoder, "rows": sizes.get(name)} for name, encoder in index.encoders.items()}
    write_index(table, replace(index, encoders=encoders, generation=generation, counted=counted))


def encoder_index(plan: PreprocessPlan, sizes: dict[str, int]) -> dict[str, dict[str, Any]]:
    """What encoders.json says of each encoder: its kind, what its ids are made of, rows of its embedding table."""
    index: dict[str, dict[str, Any]] = {}
    for feature in plan.sections.features:
        if isinstance(feature, Numeric):
            kind = "quantiles" if feature.encode.quantiles else "standardize"
            index[feature.name] = {"kind": kind, "rows": sizes.get(feature.name)}
        elif feature.ids is not None:
            kind = "vocabulary" if feature.ids.vocabulary else "hash"
            values = table_kind(plan.sections, plan.sources, feature.name)
            index[feature.name] = {"kind": kind, "values": values, "rows": sizes[feature.name]}
    return index


def vocabularies(sections: Sections) -> dict[str, Vocabulary]:
    """The embedding tables that have a vocabulary."""
    owned = {name: feature.ids for name, feature in sections.embedded.items()}
    return {name: ids.vocabulary for name, ids in owned.items() if ids is not None and ids.vocabulary is not None}


def is_fitted(feature: Categorical | Numeric | Multivalued | Sequence) -> bool:
    """Whether encoding the feature needs a look at the data: all but the owner of a hashed table."""
    return isinstance(feature, Numeric) or feature.ids is None or feature.ids.hash is None


def _count(fit: FitTask, units: list[Unit]) -> tuple[dict[str, Moments], list[str]]:
    """First step: what each unit gives. The moments of all, and the names of the units that could be read."""
    by_unit: dict[str, dict[str, list[float]]] = {}
    file_of = {_partial_name(unit): unit.file for unit in units}
    unreadable: set[str] = set()
    what = "fit" if fit.generation == 1 else "extend"
    with ProgressBar(what, sum(unit.rows for unit in units)) as progress:
        for done in run_tasks(count_unit, [unit.item for unit in units], fit):
            unit = Unit(**done.item)
            progress.add(unit.rows)
            if done.unreadable is not None:
                report_unreadable(fit.plan.sections.logs, unit.file, done.unreadable)
                unreadable.add(unit.file)
            else:
                by_unit[_partial_name(unit)] = done.result["moments"]
    # In the order of the units, whatever order they finished in, so that sums come out the same to the last bit.
    names = [name for name in file_of if file_of[name] not in unreadable]
    if fit.generation > 1:
        return {}, names
    standardized = [f.name for f in fit.plan.sections.features if isinstance(f, Numeric) and f.encode.standardize]
    moments = {}
    for feature in standardized:
        parts = [Moments(*by_unit[name][feature]) for name in names]  # type: ignore[arg-type]
        moments[feature] = reduce(Moments.combined, parts, Moments(0, 0.0, 0.0))
    return moments, names


def _split_rare(fit: FitTask) -> None:
    """Earlier counts are cut into the ranges of this run, as if they were those of more units."""
    items = [{"name": name, "number": i} for name, files in fit.rare.items() for i in range(len(files))]
    for _ in run_tasks(split_rare, items, fit):
        pass


def split_rare(item: dict[str, Any], fit: FitTask) -> dict[str, Any]:
    """Cuts a file of earlier counts into the ranges of this run; a task."""
    name, number = item["name"], item["number"]
    target = _work_file(fit.plan, "counts", name, f"rare-{number:05d}")
    vocabulary.write_partial(target, vocabulary.read_partials([fit.rare[name][number]]), fit.ranges)
    return {}


def _merge(fit: FitTask) -> None:
    sections = fit.plan.sections
    items: list[dict[str, Any]]
    items = [{"name": name, "range": i} for name in vocabularies(sections) for i in range(fit.ranges)]
    if fit.generation == 1:
        items += [{"name": f.name} for f in sections.features if isinstance(f, Numeric) and f.encode.quantiles]
    for _ in run_tasks(merge_part, items, fit):
        pass
    if fit.ranges > 1:
        for _ in run_tasks(finish_vocabulary, [{"name": name} for name in vocabularies(sections)], fit):
            pass


def fit_columns(plan: PreprocessPlan) -> set[str]:
    """Columns that the first pass reads: those that decide about rows, and those of fitted encoders."""
    fitted = set(vocabularies(plan.sections))
    unread = {f.column for f in plan.sections.embedded.values() if f.table not in fitted}
    unread -= {f.column for f in plan.sections.features if isinstance(f, Numeric) or f.table in fitted}
    unread -= {scenario.column for scenario in plan.sections.scenarios}
    unread -= {*plan.sections.logs.keys, *plan.sources.fractional}
    return {use.column for use in uses(plan.sections)} - unread


def count_unit(item: dict[str, Any], fit: FitTask) -> dict[str, Any]:
    """Counts one unit; a task of Ray.

    Raises:
        Unreadable: the file is damaged.
    """
    plan, unit = fit.plan, Unit(**item)
    sections = plan.sections
    rows = UnitRows(plan, unit, fit_columns(plan))
    kept = judge(sections, plan.sources, rows).kept
    name = _partial_name(unit)
    for table in vocabularies(sections):
        seen = [_seen(plan, feature, rows, kept) for feature in features_of_table(sections, table)]
        counts = count_values([values for values, _ in seen], [weights for _, weights in seen])
        vocabulary.write_partial(_work_file(plan, "counts", table, name), counts, fit.ranges)
    return {"moments": _count_numbers(fit, rows, kept, name) if fit.generation == 1 else {}}


def _count_numbers(
    fit: FitTask, rows: UnitRows, kept: NDArray[np.int64], unit: str
) -> dict[str, tuple[int, float, float]]:
    """Writes the points of the bucketed numbers of a unit and gives the moments of the others."""
    plan = fit.plan
    moments: dict[str, tuple[int, float, float]] = {}
    for feature in plan.sections.features:
        if not isinstance(feature, Numeric):
            continue
        column = rows.column(feature.column)
        numbers = transformed(as_numbers(column.values), feature.encode.standardize == "log1p")
        weights = np.where(np.isnan(numbers), 0, _weights(column.rows, kept, len(numbers)))
        if feature.encode.quantiles is not None:
            _write_points(_work_file(plan, "points", feature.name, unit), summarize(numbers, weights))
        else:
            summed = Moments.of(numbers[weights > 0], weights[weights > 0])
            moments[feature.name] = (summed.count, summed.mean, summed.squares)
    return moments


def _weights(rows: NDArray[Any], kept: NDArray[np.int64], values: int) -> NDArray[np.int64]:
    """How many kept rows have each value of a column."""
    return np.bincount(rows[kept], minlength=values)


def _seen(
    plan: PreprocessPlan, feature: Categorical | Multivalued | Sequence, rows: UnitRows, kept: NDArray[np.int64]
) -> tuple[IdArray, NDArray[np.int64]]:
    """The ids of a feature in the kept rows, as values and how often each occurs."""
    column = rows.column(feature.column)
    weights = _weights(column.rows, kept, len(column.values))
    kind = plan.sources.kinds[feature.column]
    if isinstance(feature, Categorical):
        return as_ids(column.values, kind)[0], weights
    lists = read_lists(feature, column.values, kind)
    return lists.items, np.repeat(weights, lists.lengths)


def merge_part(item: dict[str, Any], fit: FitTask) -> dict[str, Any]:
    """Merges one hash range of a vocabulary, or the points of a bucketed number, over all units; a task."""
    plan, name = fit.plan, item["name"]
    if "range" not in item:
        points = merge(_read_points(_work_file(plan, "points", name, unit)) for unit in fit.units)
        feature = next(f for f in plan.sections.features if f.name == name)
        assert isinstance(feature, Numeric) and feature.encode.quantiles is not None
        write_encoder(plan.table, name, pa.table({"edge": bucket_edges(points, feature.encode.quantiles)}))
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


def finish_vocabulary(item: dict[str, Any], fit: FitTask) -> dict[str, Any]:
    """Puts the ranges of a vocabulary into one order and gives ids; a task."""
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


def _write_points(path: str, points: Points) -> None:
    filesystem, path = storage.prepare_file(path)
    pq.write_table(pa.table({"value": points.values, "weight": points.weights}), path, filesystem=filesystem)


def _read_points(path: str) -> Points:
    filesystem, path = storage.resolve(path)
    read = pq.read_table(path, filesystem=filesystem, partitioning=None)
    return Points(read["value"].to_numpy(), read["weight"].to_numpy())
