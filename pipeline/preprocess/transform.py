"""The second pass: the rows of a unit are checked, encoded, shuffled and distributed over the lanes."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config.logs import TaskConfig
from pipeline.errors import UserError, one_line
from pipeline.features.base import EncodedColumn
from pipeline.features.encoders import Encoder
from pipeline.preprocess.chains import labels_after_zero
from pipeline.preprocess.content import count_content
from pipeline.preprocess.preprocess_plan import PreprocessPlan
from pipeline.preprocess.quarantine import write_quarantine
from pipeline.preprocess.rows import judge, labels, scenario_codes
from pipeline.preprocess.sampling import dropped_negatives, lane_weights
from pipeline.preprocess.targets import references
from pipeline.preprocess.text_hints import count_texts
from pipeline.preprocess.units import Unit, UnitRows, all_columns
from pipeline.preprocess.write import deal, unit_generator, write_lanes
from pipeline.table.manifest import KEY
from pipeline.table.target_quantiles import TargetQuantiles

KEY_BYTES = 2**30
"""Bytes of a key that are converted at once: its type in lane files may have offsets of 32 bits."""


@dataclass(frozen=True)
class Transform:
    """Data that the tasks of this pass share."""

    plan: PreprocessPlan
    encoders: dict[str, Encoder]
    quantiles: TargetQuantiles = field(default_factory=dict)


@dataclass
class IdCounts:
    """Number of ids per feature in a unit, and how many of them are unknown or missing."""

    ids: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)

    def add(self, feature: str, column: EncodedColumn) -> None:
        self.ids[feature] = column.ids
        self.missing[feature] = column.missing
        if column.unknown is not None:
            self.unknown[feature] = column.unknown


def transform_unit(item: dict[str, Any], shared: Transform) -> dict[str, Any]:
    """Transforms one unit and writes its files; a Ray task.

    Returns:
        Fields of `Partition`, for this unit only; `lanes` as returned by `write_lanes`, `after_zero` by
        `labels_after_zero`, `texts` by `count_texts`, and `lost_columns` by `write_quarantine`.

    Raises:
        Unreadable: the file is damaged.
        UserError: a list feature has more items than a unit can hold, or a key does not fit into its column.
    """
    plan, unit = shared.plan, Unit(**item)
    rows = UnitRows(plan, unit, all_columns(plan))
    verdict = judge(plan.sections, plan.sources, rows)
    verdict.sample_out(dropped_negatives(plan.sections, plan.sources, rows, verdict.kept))
    lost: dict[str, str] = {}
    if len(verdict.quarantined):
        reasons = pa.array(verdict.reasons).take(pa.array(verdict.codes[verdict.quarantined] - 1))
        lost = write_quarantine(plan, unit, verdict.quarantined, reasons)
    settings = plan.sections.table
    order, lengths = deal(verdict.kept, settings.lanes, unit_generator(settings.seed, unit))
    table, counts = encode_rows(shared, rows, order)
    return {
        "quarantined": len(verdict.quarantined),
        "filtered": verdict.filtered,
        "unlabelled": verdict.unlabelled,
        "sampled_out": verdict.sampled_out,
        "reasons": verdict.counts(),
        "lost_columns": lost,
        "lanes": write_lanes(plan, unit, table, lengths),
        "ids": counts.ids,
        "unknown": counts.unknown,
        "missing": counts.missing,
        "after_zero": labels_after_zero(plan.sections, plan.sources, rows, verdict.kept),
        "texts": count_texts(plan.sections, rows),
        "content": count_content(plan, rows, verdict, table),
    }


def encode_rows(shared: Transform, rows: UnitRows, order: NDArray[np.int64]) -> tuple[pa.Table, IdCounts]:
    """The columns of lane files for some rows of a unit, in the given order."""
    plan, counts = shared.plan, IdCounts()
    columns: list[pa.Array | pa.ChunkedArray] = []
    for feature in plan.sections.features:
        encoded = feature.encode_rows(shared.encoders[feature.encoder_name], rows, order)
        columns.append(encoded.values)
        if encoded.weights is not None:
            columns.append(encoded.weights)
        counts.add(feature.name, encoded)
    for task in plan.sections.tasks:
        columns.append(pa.array(_encode_labels(shared, task, rows)[order]))
    if plan.sections.has_weights:
        columns += [pa.array(weights[order]) for weights in lane_weights(plan.sections, plan.sources, rows)]
    for task in plan.sections.tasks:
        reference = references(task, rows)
        if reference is not None:
            columns.append(pa.array(reference[order]))
    for scenario in plan.sections.scenarios:
        columns.append(pa.array(scenario_codes(scenario, plan.sources, rows)[order]))
    for key in plan.sections.logs.keys:
        columns.append(_encode_key(plan, key, rows, order))
    return pa.Table.from_arrays(columns, schema=plan.schema), counts


def _encode_labels(shared: Transform, task: TaskConfig, rows: UnitRows) -> NDArray[np.float32]:
    """The target of each row, ``(rows,)``, NaN where there is no label."""
    values, reference = labels(shared.plan.sections, task, shared.plan.sources, rows), references(task, rows)
    if task.name not in shared.quantiles or reference is None:
        return values
    return shared.quantiles[task.name].quantiles_of(values, reference)


def _encode_key(plan: PreprocessPlan, key: str, rows: UnitRows, order: NDArray[np.int64]) -> pa.ChunkedArray:
    column = rows.column(key)
    type_ = plan.schema.field(KEY + key).type
    values = column.values.take(pa.array(column.rows[order]))
    parts = 1 + values.nbytes // KEY_BYTES
    size = max(1, -(-len(values) // parts))
    try:
        return pa.chunked_array([values.slice(i, size).cast(type_) for i in range(0, len(values), size)], type_)
    except pa.ArrowInvalid as error:
        raise UserError(
            f"The key {key!r} is {column.values.type} in the log file {rows.file}, but {type_} in the feature table, "
            f"because of other files, and not every value fits: {one_line(error)}. Write that column with one type "
            "in all files."
        ) from error
