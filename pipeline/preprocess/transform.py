"""The second pass: the rows of a unit, judged, encoded, shuffled and dealt to the lanes."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config.features import MISSING_ID, UNKNOWN_ID, Categorical, Multivalued, Numeric, Sequence
from pipeline.errors import UserError
from pipeline.preprocess.discover import one_line
from pipeline.preprocess.encode import Encoder, read_lists
from pipeline.preprocess.plan import PreprocessPlan
from pipeline.preprocess.rows import judge, label_values, scenario_codes
from pipeline.preprocess.units import Unit, UnitRows, all_columns
from pipeline.preprocess.values import as_ids, as_numbers
from pipeline.preprocess.write import deal, unit_generator, write_lanes, write_quarantine
from pipeline.table.manifest import KEY

_MOST_ITEMS = 2**31 - 1  # of a list column of one unit: offsets are int32


@dataclass(frozen=True)
class Transform:
    """What the tasks of this pass share."""

    plan: PreprocessPlan
    encoders: dict[str, Encoder]


@dataclass
class IdCounts:
    """How many ids a unit has a feature, and how many of them are unknown or missing."""

    ids: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)

    def add(self, feature: str, ids: NDArray[Any], missing: int) -> None:
        """Counts ids that stand in the table, and nulls: those of single values, or those dropped from lists."""
        self.ids[feature] = len(ids)
        self.unknown[feature] = int(np.count_nonzero(ids == UNKNOWN_ID))
        self.missing[feature] = missing


def transform_unit(item: dict[str, Any], shared: Transform) -> dict[str, Any]:
    """Transforms one unit and writes its files; a task of Ray.

    Returns:
        Fields of `Partition`, for this unit alone; `lanes` as given by `write_lanes`.

    Raises:
        Unreadable: the file is damaged.
        UserError: a list feature has more items than a unit can hold, or a key does not fit into its column.
    """
    plan, unit = shared.plan, Unit(**item)
    rows = UnitRows(plan, unit, all_columns(plan))
    verdict = judge(plan.sections, plan.sources, rows)
    if len(verdict.quarantined):
        reasons = pa.array(verdict.reasons).take(pa.array(verdict.codes[verdict.quarantined] - 1))
        write_quarantine(plan, unit, verdict.quarantined, reasons)
    settings = plan.sections.table
    order, lengths = deal(verdict.kept, settings.lanes, unit_generator(settings.seed, unit))
    table, counts = encode_rows(shared, rows, order)
    return {
        "quarantined": len(verdict.quarantined),
        "filtered": verdict.filtered,
        "reasons": verdict.counts(),
        "lanes": write_lanes(plan, unit, table, lengths),
        "ids": counts.ids,
        "unknown": counts.unknown,
        "missing": counts.missing,
    }


def encode_rows(shared: Transform, rows: UnitRows, order: NDArray[np.int64]) -> tuple[pa.Table, IdCounts]:
    """The columns of lane files for some rows of a unit, in the order given."""
    plan, counts = shared.plan, IdCounts()
    columns: list[pa.Array] = []
    for feature in plan.sections.features:
        encoder = shared.encoders[feature.name if isinstance(feature, Numeric) else feature.table]
        if isinstance(feature, Numeric):
            columns.append(_encode_number(feature, encoder, rows, order, counts))
        elif isinstance(feature, Categorical):
            columns.append(_encode_id(plan, feature, encoder, rows, order, counts))
        else:
            columns.append(_encode_lists(plan, feature, encoder, rows, order, counts))
    for task in plan.sections.tasks:
        column = rows.column(task.column)
        columns.append(pa.array(label_values(task, as_numbers(column.values))[column.rows[order]]))
    for scenario in plan.sections.scenarios:
        columns.append(pa.array(scenario_codes(scenario, plan.sources, rows)[order]))
    for key in plan.sections.logs.keys:
        columns.append(_encode_key(plan, key, rows, order))
    return pa.Table.from_arrays(columns, schema=plan.schema), counts


def _encode_number(
    feature: Numeric, encoder: Encoder, rows: UnitRows, order: NDArray[np.int64], counts: IdCounts
) -> pa.Array:
    column = rows.column(feature.column)
    at = column.rows[order]
    missing = np.isnan(as_numbers(column.values))[at]
    encoded = encoder.encode(column.values)[at]
    counts.ids[feature.name] = len(at)
    counts.missing[feature.name] = int(np.count_nonzero(missing))
    return pa.array(encoded)


def _encode_key(plan: PreprocessPlan, key: str, rows: UnitRows, order: NDArray[np.int64]) -> pa.Array:
    column = rows.column(key)
    type_ = plan.schema.field(KEY + key).type
    try:
        return column.values.cast(type_).take(pa.array(column.rows[order]))
    except pa.ArrowInvalid as error:
        raise UserError(
            f"The key {key!r} is {column.values.type} in the log file {rows.file}, but {type_} in the feature table, "
            f"as it was in other files, and not every value fits: {one_line(error)}. Write that column with one type "
            "in all files."
        ) from error


def _encode_id(
    plan: PreprocessPlan,
    feature: Categorical,
    encoder: Encoder,
    rows: UnitRows,
    order: NDArray[np.int64],
    counts: IdCounts,
) -> pa.Array:
    column = rows.column(feature.column)
    values, _ = as_ids(column.values, plan.sources.kinds[feature.column])
    ids = encoder.encode(values)[column.rows[order]]
    counts.add(feature.name, ids, int(np.count_nonzero(ids == MISSING_ID)))
    return pa.array(ids)


def _encode_lists(
    plan: PreprocessPlan,
    feature: Multivalued | Sequence,
    encoder: Encoder,
    rows: UnitRows,
    order: NDArray[np.int64],
    counts: IdCounts,
) -> pa.Array:
    column = rows.column(feature.column)
    at = column.rows[order]
    lists = read_lists(feature, column.values, plan.sources.kinds[feature.column])
    if max(lists.lengths.sum(), lists.lengths[at].sum()) > _MOST_ITEMS:
        raise UserError(
            f"feature {feature.name!r}: its lists have more than {_MOST_ITEMS:,} items in one unit of rows. "
            "Write the log with smaller row groups, or make the lists shorter."
        )
    offsets = np.append(0, np.cumsum(lists.lengths)).astype(np.int32)
    ids = pa.ListArray.from_arrays(pa.array(offsets), pa.array(encoder.encode(lists.items)))
    ordered = ids.take(pa.array(at))
    dropped = int(lists.dropped[at].sum())
    counts.add(feature.name, ordered.flatten().to_numpy(), dropped)
    counts.ids[feature.name] += dropped
    return ordered
