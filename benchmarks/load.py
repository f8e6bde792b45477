"""Reading alone, from lane files to batches, compared with pyarrow's decoding of the same columns.

    python -m benchmarks.load --folder DIR

`decode` reads the same row groups in the same order of an epoch, one after another; `decode_whole` reads whole files in
table order, which shuffled training cannot do. Both use pyarrow's own threads. All three take turns.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import workload
from pipeline.config.experiment import Experiment
from pipeline.loading.order import Shuffle, epoch_windows, lane_groups
from pipeline.loading.position import Position
from pipeline.loading.prefetch import prefetch
from pipeline.loading.reader import Reader
from pipeline.sharding.model_inputs import batch_columns
from pipeline.table.manifest import Manifest, read_manifest
from pipeline.workers.worker import keep_memory

ROWS = 4_000_000
ROUNDS = 6

Read = tuple[int, int]  # rows, bytes


def measure(folder: Path) -> dict[str, Any]:
    """Rows and bytes per second of each way to read, and the ratios. The folder keeps the log and the table."""
    workload.prepare(folder, ROWS)
    made = workload.experiment(folder)
    manifest = read_manifest(made.table_folder)
    columns = batch_columns(made, workload.inputs_of(made))
    ways: dict[str, Callable[[], Read]] = {
        "load": lambda: load(made, manifest),
        "decode": lambda: decode_groups(made, manifest, columns.read),
        "decode_whole": lambda: decode_whole(made, manifest, columns.read),
    }
    keep_memory()
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(1 + ROUNDS):
        for name, way in ways.items():
            start = time.perf_counter()
            rows, size = way()
            seconds = time.perf_counter() - start
            if number:
                rates[name].append((rows / seconds, size / seconds))
    figures = {
        name: {
            "rows_per_second": round(statistics.median(rate for rate, _ in measured)),
            "bytes_per_second": round(statistics.median(rate for _, rate in measured)),
        }
        for name, measured in rates.items()
    }
    loaded, decoded = figures["load"]["rows_per_second"], figures["decode"]["rows_per_second"]
    whole = figures["decode_whole"]["rows_per_second"]
    return {**figures, "ratios": {"load_vs_decode": loaded / decoded, "load_vs_decode_whole": loaded / whole}}


def load(made: Experiment, manifest: Manifest) -> Read:
    """Reads every batch of an epoch as training gets it; the bytes are those of the batches."""
    columns = batch_columns(made, workload.inputs_of(made))
    reader = Reader(
        made.table_folder,
        manifest,
        "train",
        columns,
        global_batch_size=workload.BATCH,
        rank=0,
        workers=1,
        seed=0,
        shuffle_rows=made.training.shuffle_rows,
    )
    size = 0
    for batch in prefetch(reader.epoch(Position())):
        assert batch.ids is not None
        size += batch.ids.values().nbytes + batch.labels.nbytes + batch.scenarios.nbytes
    return reader.rows, size


def decode_groups(made: Experiment, manifest: Manifest, columns: list[str]) -> Read:
    """The row groups of all lanes in the order of an epoch."""
    shuffle = Shuffle(0, -(-made.training.shuffle_rows // manifest.lanes))
    lanes = [epoch_windows(lane_groups(manifest, "train", lane), shuffle, 0, lane) for lane in range(manifest.lanes)]
    rows = size = 0
    for turn in range(max(map(len, lanes))):
        for windows in lanes:
            for group in windows[turn].groups if turn < len(windows) else ():
                with pq.ParquetFile(f"{made.table_folder}/{group.path}") as file:
                    read: pa.Table = file.read_row_group(group.index, columns=columns)
                rows, size = rows + len(read), size + read.nbytes
    return rows, size


def decode_whole(made: Experiment, manifest: Manifest, columns: list[str]) -> Read:
    rows = size = 0
    for partition in manifest.split("train"):
        for lane in partition.lanes:
            for lane_file in lane:
                with pq.ParquetFile(f"{made.table_folder}/{lane_file.path}") as file:
                    read = file.read(columns=columns)
                rows, size = rows + len(read), size + read.nbytes
    return rows, size


def report(figures: dict[str, Any]) -> None:
    """Prints the figures."""
    print(f"\n| {'reading':<14} | rows per second | MB per second |\n| {'-' * 14} | --------------: | ------------: |")
    for name in ("load", "decode", "decode_whole"):
        rows, size = figures[name]["rows_per_second"], figures[name]["bytes_per_second"]
        print(f"| {name:<14} | {rows:>15,} | {size / 1e6:>13,.0f} |")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="folder to keep the data in; by default a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(options.folder or Path(scratch))
    report(figures)
    print({name: round(value, 2) for name, value in figures["ratios"].items()})


if __name__ == "__main__":
    main()
