"""Down-sampling of negatives in the train split, and the weights of the rows that are kept."""

import hashlib

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config.table_experiment import TableExperiment
from pipeline.features.arrow_types import is_bytes, is_text
from pipeline.features.values import as_numbers, as_texts, hash_values
from pipeline.preprocess.rows import labels, rows_with_label
from pipeline.preprocess.sources import Sources
from pipeline.preprocess.units import UnitRows
from pipeline.preprocess.weights import task_weights


def is_sampled(sections: TableExperiment, sources: Sources, rows: UnitRows) -> NDArray[np.bool_]:
    """Whether `logs.negatives` applies to each row: those of the train split whose label of its task is 0."""
    negatives = sections.logs.negatives
    if negatives is None or rows.split != "train":
        return np.zeros(rows.count, dtype=bool)
    task = next(task for task in sections.tasks if task.name == negatives.task)
    return labels(sections, task, sources, rows) == 0


def dropped_negatives(
    sections: TableExperiment, sources: Sources, rows: UnitRows, kept: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Row numbers of the negatives that `logs.negatives` leaves out.

    The choice depends only on the row's keys and `table.seed`; without keys, on its file and row number.

    Args:
        kept: row numbers of the usable rows: those that are quarantined may have no keys.
    """
    if sections.logs.negatives is None:
        return kept[:0]
    negatives = kept[is_sampled(sections, sources, rows)[kept]]
    return negatives[_uniform(sections, rows, negatives) >= sections.logs.negatives.keep]


def lane_weights(sections: TableExperiment, sources: Sources, rows: UnitRows) -> list[NDArray[np.float32]]:
    """The weight of each row for each task in lane files: those of the log, times 1 / keep for negatives."""
    keep = 1.0 if sections.logs.negatives is None else sections.logs.negatives.keep
    correction = np.where(is_sampled(sections, sources, rows), 1 / keep, 1)
    with np.errstate(over="ignore"):  # in rows that are quarantined
        return [
            (task_weights(sections, task, rows, rows_with_label(sections, task, sources, rows)) * correction).astype(
                np.float32
            )
            for task in sections.tasks
        ]


def _uniform(sections: TableExperiment, rows: UnitRows, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    """A number from 0 up to 1 for each of the chosen rows, the same on every machine and in every run."""
    keys = [rows.column(key) for key in sections.logs.keys]
    parts = [hash_values(_hashable(key.values.take(pa.array(key.rows[chosen])))) for key in keys]
    start = f"{sections.table.seed}/negatives"
    if not parts:
        parts = [hash_values(pa.array(chosen + rows.first_row))]
        start = f"{start}/{rows.file}"
    digest = hashlib.sha256(start.encode()).digest()
    state = np.full(len(chosen), int.from_bytes(digest[:8], "little"), dtype=np.uint64)
    for part in parts:
        state = hash_values(pa.array((state * _ODD + part).view(np.int64)))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


_ODD = np.uint64(0x9E3779B97F4A7C15)
"""Any odd factor: the same keys in another order then have another hash."""


_IN_MICROSECONDS = {"s": 10**6, "ms": 10**3, "us": 1}


def _hashable(values: pa.Array) -> pa.Array:
    """Values as int64 or as bytes: equal for equal numbers, moments and texts, whatever their width, unit or scale."""
    type_ = values.type
    if pa.types.is_dictionary(type_):
        return _hashable(values.cast(type_.value_type))
    if pa.types.is_uint64(type_):
        return values.view(pa.int64())
    if pa.types.is_integer(type_) or pa.types.is_boolean(type_):
        return values.cast(pa.int64())
    if pa.types.is_floating(type_):
        numbers = as_numbers(values)
        whole = (np.floor(numbers) == numbers) & (np.abs(numbers) < 2.0**63)
        return pa.array(np.where(whole, np.where(whole, numbers, 0).astype(np.int64), numbers.view(np.int64)))
    if pa.types.is_temporal(type_) and not pa.types.is_interval(type_):
        return _in_microseconds(values)
    if is_text(type_) or is_bytes(type_):
        return as_texts(values)
    if pa.types.is_decimal(type_):
        return pa.array([str(value.normalize()).encode() for value in values.to_pylist()], pa.large_binary())
    return pa.array([repr(value).encode() for value in values.to_pylist()], pa.large_binary())


def _in_microseconds(values: pa.Array) -> pa.Array:
    """Dates, moments, times of day and durations as int64; the rest of nanoseconds is mixed into their bits."""
    type_ = values.type
    if pa.types.is_date32(type_):
        return pa.array(values.cast(pa.int32()).to_numpy().astype(np.int64) * 86_400 * 10**6)
    numbers = values.view(pa.int32() if pa.types.is_time32(type_) else pa.int64()).to_numpy().astype(np.int64)
    unit = "ms" if pa.types.is_date64(type_) else type_.unit
    if unit != "ns":
        return pa.array(numbers * _IN_MICROSECONDS[unit])
    whole, rest = np.divmod(numbers, 1000)
    return pa.array(whole ^ (rest.astype(np.uint64) * _ODD).view(np.int64))
