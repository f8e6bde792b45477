"""The first pass: encoders are fitted on the rows of the train split that can be used.

each unit: counts, points and moments   ->  TABLE/work
each vocabulary and hash range: merged  ->  TABLE/work
each encoder                            ->  TABLE/encoders; encoders.json is written last and commits them
"""

import logging
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import storage
from pipeline.config.features import Categorical, Multivalued, Numeric, Sequence, Vocabulary
from pipeline.errors import UserError
from pipeline.preprocess import vocabulary
from pipeline.preprocess.columns import features_of_table, table_kind, uses
from pipeline.preprocess.discover import report_unreadable
from pipeline.preprocess.encode import (
    ENCODERS,
    INDEX,
    load_encoders,
    read_lists,
    table_sizes,
    transformed,
    write_encoder,
)
from pipeline.preprocess.plan import Plan
from pipeline.preprocess.progress import Progress
from pipeline.preprocess.rows import judge
from pipeline.preprocess.sections import Sections
from pipeline.preprocess.sketch import Moments, Points, bucket_edges, merge, summarize
from pipeline.preprocess.tasks import run_tasks
from pipeline.preprocess.units import Rows, Unit
from pipeline.preprocess.values import IdArray, as_ids, as_numbers, count_values

logger = logging.getLogger(__name__)

WORK = "work"


@dataclass(frozen=True)
class Fit:
    """What the tasks of this pass share."""

    plan: Plan
    ranges: int
    units: list[str]  # names of the partial results, in the order that they are merged in


def fit_encoders(plan: Plan, units: list[Unit]) -> None:
    """Fits all encoders on the units of the train split and commits them.

    Raises:
        UserError: a file cannot be read, or none of the split can.
    """
    sections, table = plan.sections, plan.table
    storage.delete_folder(storage.join(table, WORK))
    storage.delete_folder(storage.join(table, ENCODERS))
    ranges = vocabulary.range_count(len(units))
    if any(is_fitted(feature) for feature in sections.features):
        moments, names = _count(Fit(plan, ranges, []), units)
        _merge(Fit(plan, ranges, names))
        for name, moment in moments.items():
            write_encoder(table, name, pa.table({"mean": [moment.mean], "deviation": [moment.deviation]}))
    encoders = load_encoders(sections, table)
    sizes = table_sizes(sections, encoders)
    for name in vocabularies(sections):
        logger.info("encoder %s: %s rows", name, f"{sizes[name]:,}")
    storage.write_json(storage.join(table, ENCODERS, INDEX), encoder_index(plan, sizes))


def encoder_index(plan: Plan, sizes: dict[str, int]) -> dict[str, dict[str, Any]]:
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


def _count(fit: Fit, units: list[Unit]) -> tuple[dict[str, Moments], list[str]]:
    """First step: what each unit gives. The moments of all, and the names of the units that could be read."""
    by_unit: dict[str, dict[str, list[float]]] = {}
    file_of = {_partial_name(unit): unit.file for unit in units}
    unreadable: set[str] = set()
    with Progress("fit", sum(unit.rows for unit in units)) as progress:
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
    if not names:
        raise UserError("logs.splits.train: its partitions have no rows that can be read, so nothing can be fitted.")
    standardized = [f.name for f in fit.plan.sections.features if isinstance(f, Numeric) and f.encode.standardize]
    moments = {}
    for feature in standardized:
        parts = [Moments(*by_unit[name][feature]) for name in names]  # type: ignore[arg-type]
        moments[feature] = reduce(Moments.combined, parts, Moments(0, 0.0, 0.0))
    return moments, names


def _merge(fit: Fit) -> None:
    sections = fit.plan.sections
    ranges = [{"name": name, "range": i} for name in vocabularies(sections) for i in range(fit.ranges)]
    bucketed = [{"name": f.name} for f in sections.features if isinstance(f, Numeric) and f.encode.quantiles]
    for _ in run_tasks(merge_part, ranges + bucketed, fit):
        pass
    if fit.ranges > 1:
        for _ in run_tasks(finish_vocabulary, [{"name": name} for name in vocabularies(sections)], fit):
            pass


def fit_columns(plan: Plan) -> set[str]:
    """Columns that the first pass reads: those that decide about rows, and those of fitted encoders."""
    fitted = set(vocabularies(plan.sections))
    unread = {f.column for f in plan.sections.embedded.values() if f.table not in fitted}
    unread -= {f.column for f in plan.sections.features if isinstance(f, Numeric) or f.table in fitted}
    unread -= {scenario.column for scenario in plan.sections.scenarios}
    unread -= {*plan.sections.logs.keys, *plan.sources.fractional}
    return {use.column for use in uses(plan.sections)} - unread


def count_unit(item: dict[str, Any], fit: Fit) -> dict[str, Any]:
    """Counts one unit; a task of Ray Data.

    Raises:
        Unreadable: the file is damaged.
    """
    plan, unit = fit.plan, Unit(**item)
    sections = plan.sections
    rows = Rows(plan, unit, fit_columns(plan))
    kept = judge(sections, plan.sources, rows).kept
    name = _partial_name(unit)
    for table in vocabularies(sections):
        seen = [_seen(plan, feature, rows, kept) for feature in features_of_table(sections, table)]
        counts = count_values([values for values, _ in seen], [weights for _, weights in seen])
        vocabulary.write_partial(_work_file(plan, "counts", table, name), counts, fit.ranges)
    moments: dict[str, tuple[int, float, float]] = {}
    for feature in sections.features:
        if not isinstance(feature, Numeric):
            continue
        column = rows.column(feature.column)
        numbers = transformed(as_numbers(column.values), feature.encode.standardize == "log1p")
        weights = np.where(np.isnan(numbers), 0, _weights(column.rows, kept, len(numbers)))
        if feature.encode.quantiles is not None:
            _write_points(_work_file(plan, "points", feature.name, name), summarize(numbers, weights))
        else:
            summed = Moments.of(numbers[weights > 0], weights[weights > 0])
            moments[feature.name] = (summed.count, summed.mean, summed.squares)
    return {"moments": moments}


def _weights(rows: NDArray[Any], kept: NDArray[np.int64], values: int) -> NDArray[np.int64]:
    """How many kept rows have each value of a column."""
    return np.bincount(rows[kept], minlength=values)


def _seen(
    plan: Plan, feature: Categorical | Multivalued | Sequence, rows: Rows, kept: NDArray[np.int64]
) -> tuple[IdArray, NDArray[np.int64]]:
    """The ids of a feature in the kept rows, as values and how often each occurs."""
    column = rows.column(feature.column)
    weights = _weights(column.rows, kept, len(column.values))
    kind = plan.sources.kinds[feature.column]
    if isinstance(feature, Categorical):
        return as_ids(column.values, kind)[0], weights
    lists = read_lists(feature, column.values, kind)
    return lists.items, np.repeat(weights, lists.lengths)


def merge_part(item: dict[str, Any], fit: Fit) -> dict[str, Any]:
    """Merges one hash range of a vocabulary, or the points of a bucketed number, over all units; a task."""
    plan, name = fit.plan, item["name"]
    if "range" not in item:
        points = merge(_read_points(_work_file(plan, "points", name, unit)) for unit in fit.units)
        feature = next(f for f in plan.sections.features if f.name == name)
        assert isinstance(feature, Numeric) and feature.encode.quantiles is not None
        write_encoder(plan.table, name, pa.table({"edge": bucket_edges(points, feature.encode.quantiles)}))
        return {}
    paths = [_work_file(plan, "counts", name, unit) for unit in fit.units]
    merged = vocabulary.merge_range(paths, item["range"], vocabularies(plan.sections)[name])
    if fit.ranges == 1:
        vocabulary.write_vocabulary(plan.table, name, merged)
    else:
        vocabulary.write_partial(_work_file(plan, "merged", name, f"range-{item['range']:05d}"), merged, 1)
    return {}


def finish_vocabulary(item: dict[str, Any], fit: Fit) -> dict[str, Any]:
    """Puts the ranges of a vocabulary into one order and gives ids; a task."""
    plan, name = fit.plan, item["name"]
    paths = [_work_file(plan, "merged", name, f"range-{i:05d}") for i in range(fit.ranges)]
    vocabulary.write_vocabulary(plan.table, name, vocabulary.merge_range(paths, 0, vocabularies(plan.sections)[name]))
    return {}


def _partial_name(unit: Unit) -> str:
    return f"{unit.partition}-{unit.name}"


def _work_file(plan: Plan, folder: str, encoder: str, name: str) -> str:
    return storage.join(plan.table, WORK, folder, encoder, f"{name}.parquet")


def _write_points(path: str, points: Points) -> None:
    filesystem, path = storage.resolve(path)
    filesystem.create_dir(path.rsplit("/", 1)[0], recursive=True)
    pq.write_table(pa.table({"value": points.values, "weight": points.weights}), path, filesystem=filesystem)


def _read_points(path: str) -> Points:
    filesystem, path = storage.resolve(path)
    read = pq.read_table(path, filesystem=filesystem, partitioning=None)
    return Points(read["value"].to_numpy(), read["weight"].to_numpy())
