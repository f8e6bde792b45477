"""Lane files of one unit. Their names and content depend only on the unit."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import storage
from pipeline.preprocess.preprocess_plan import PreprocessPlan
from pipeline.preprocess.units import Unit
from pipeline.table_folder import QUARANTINE


def unit_generator(seed: int, unit: Unit) -> np.random.Generator:
    """A random generator that depends only on the table's seed, the partition and the unit."""
    digest = hashlib.sha256(f"{seed}/{unit.partition}/{unit.number}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest))


def deal(
    rows: NDArray[np.int64], lanes: int, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distributes rows over lanes at random.

    Returns:
        The rows in a new order, and the number of consecutive rows of each lane. The numbers differ by at most one;
        which lanes get one more row is random, so that lanes stay balanced over many units.
    """
    lengths = np.full(lanes, len(rows) // lanes)
    lengths[(generator.integers(lanes) + np.arange(len(rows) % lanes)) % lanes] += 1
    return generator.permutation(rows), lengths


def write_lanes(
    plan: PreprocessPlan, unit: Unit, table: pa.Table, lengths: NDArray[np.int64]
) -> list[tuple[int, str, int, int]]:
    """Writes consecutive rows to one file per lane; a lane without rows gets no file.

    Returns:
        Lane, path relative to the feature table, rows and bytes of each file.
    """
    folder = lane_folder(plan, unit.split, unit.partition)
    encodings = byte_streams(table.schema)
    files = []
    start = 0
    for lane, rows in enumerate(lengths.tolist()):
        if rows == 0:
            continue
        path = f"{folder}/lane-{lane:03d}/{unit.name}.parquet"
        with storage.open_output(storage.join(plan.table, path)) as stream:
            pq.write_table(
                table.slice(start, rows),
                stream,
                row_group_size=plan.sections.table.row_group_rows,
                compression="lz4",
                use_dictionary=False,  # ids rarely repeat within a small row group
                column_encoding=encodings,
            )
            files.append((lane, path, rows, int(stream.tell())))
        start += rows
    return files


def byte_streams(schema: pa.Schema) -> dict[str, str]:
    """The encoding of 32-bit columns, BYTE_STREAM_SPLIT: the k-th bytes of all values are stored together.

    The upper bytes of ids are mostly equal, so files are smaller and faster to write and read than with plain encoding.
    """
    encodings = {}
    for field in schema:
        is_list = pa.types.is_list(field.type)
        item = field.type.value_type if is_list else field.type
        if item in (pa.int32(), pa.float32()):
            encodings[f"{field.name}.list.element" if is_list else field.name] = "BYTE_STREAM_SPLIT"
    return encodings


def quarantine_folder(plan: PreprocessPlan, partition: str) -> str:
    """Path relative to the feature table."""
    return f"{QUARANTINE}/{plan.sections.logs.partition_name}={partition}"


def lane_folder(plan: PreprocessPlan, split: str, partition: str) -> str:
    """Path relative to the feature table."""
    return f"{split}/{plan.sections.logs.partition_name}={partition}"
