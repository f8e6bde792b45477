"""Lane files and quarantine files of one unit. Names and content follow from the unit alone."""

import hashlib
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import storage
from pipeline.preprocess.preprocess_plan import PreprocessPlan
from pipeline.preprocess.units import Unit, read_unit

QUARANTINE = "quarantine"


def unit_generator(seed: int, unit: Unit) -> np.random.Generator:
    """Random numbers that depend on the table's seed, the partition and the unit, and on nothing else."""
    digest = hashlib.sha256(f"{seed}/{unit.partition}/{unit.number}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest))


def deal(
    rows: NDArray[np.int64], lanes: int, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Spreads rows over lanes at random.

    Returns:
        The rows in a new order, and how many of them, from the front, each lane takes. The lengths differ by one at
        most; which lanes get one more is random, so that lanes stay even over many units.
    """
    lengths = np.full(lanes, len(rows) // lanes)
    lengths[(generator.integers(lanes) + np.arange(len(rows) % lanes)) % lanes] += 1
    return generator.permutation(rows), lengths


def write_lanes(
    plan: PreprocessPlan, unit: Unit, table: pa.Table, lengths: NDArray[np.int64]
) -> list[tuple[int, str, int, int]]:
    """Writes consecutive rows to one file a lane; a lane without rows gets none.

    Returns:
        Lane, path relative to the feature table, rows, bytes of each file.
    """
    folder = lane_folder(plan, unit.split, unit.partition)
    encodings = byte_streams(table.schema)
    files = []
    start = 0
    for lane, rows in enumerate(lengths.tolist()):
        if rows == 0:
            continue
        path = f"{folder}/lane-{lane:03d}/{unit.name}.parquet"
        filesystem, resolved = storage.prepare_file(storage.join(plan.table, path))
        with filesystem.open_output_stream(resolved) as stream:
            pq.write_table(
                table.slice(start, rows),
                stream,
                row_group_size=plan.sections.table.row_group_rows,
                compression="lz4",
                use_dictionary=False,  # ids hardly repeat inside a small row group
                column_encoding=encodings,
            )
            files.append((lane, path, rows, int(stream.tell())))
        start += rows
    return files


def byte_streams(schema: pa.Schema) -> dict[str, str]:
    """The encoding of columns of 32 bits: first bytes together, then second ones. The upper bytes of ids are mostly
    alike, so that files are smaller, and written and read faster, than with whole values one after the other."""
    encodings = {}
    for field in schema:
        is_list = pa.types.is_list(field.type)
        item = field.type.value_type if is_list else field.type
        if item in (pa.int32(), pa.float32()):
            encodings[f"{field.name}.list.element" if is_list else field.name] = "BYTE_STREAM_SPLIT"
    return encodings


def write_quarantine(plan: PreprocessPlan, unit: Unit, rows: NDArray[np.int64], reasons: pa.Array) -> None:
    """Writes rejected rows as they stand in the log, with their file, row number and reason.

    Args:
        rows: row numbers in the unit, ascending.
        reasons: one a row.
    """
    # A second look at the file: only now are the columns needed that no feature uses.
    bad = read_unit(plan.log, unit, None, set()).take(pa.array(rows))
    added: dict[str, Any] = {
        "file": pa.array([unit.file] * len(rows)),
        "row": pa.array(rows + unit.first_row),
        "reason": reasons,
    }
    for name, column in added.items():
        bad = bad.append_column(name if name not in bad.column_names else f"quarantine_{name}", column)
    bad = bad.rename_columns(_distinct(bad.column_names))
    name = f"{quarantine_folder(plan, unit.partition)}/{unit.name}.parquet"
    filesystem, path = storage.prepare_file(storage.join(plan.table, name))
    pq.write_table(bad, path, filesystem=filesystem)


def _distinct(names: list[str]) -> list[str]:
    """Names with a number behind those that stood before: most readers refuse a file that has a name twice."""
    distinct: list[str] = []
    for name in names:
        tries = (name if n == 1 else f"{name}_{n}" for n in count(1))
        distinct.append(next(one for one in tries if one not in distinct))
    return distinct


def quarantine_folder(plan: PreprocessPlan, partition: str) -> str:
    """Relative to the feature table."""
    return f"{QUARANTINE}/{plan.sections.logs.partition}={partition}"


def lane_folder(plan: PreprocessPlan, split: str, partition: str) -> str:
    """Relative to the feature table."""
    return f"{split}/{plan.sections.logs.partition}={partition}"
