"""Reads a feature table as batches: one worker's share of every global batch."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline import storage
from pipeline.config.lanes import check_division
from pipeline.errors import UserError
from pipeline.loading.batch import Batch
from pipeline.loading.batch_columns import BatchColumns, ColumnBlock, LaneRows
from pipeline.loading.lane import LaneStream
from pipeline.loading.order import Shuffle, global_weight, lane_groups, lane_rows, noise_keys, steps_per_epoch
from pipeline.loading.position import Position
from pipeline.table.manifest import KEY, Manifest

# Rows of one worker that are gathered at a time: enough to make a gather worth its overhead, little in memory.
BLOCK_ROWS = 262_144


class Reader:
    """Reads one split as this worker's batches.

    Worker `rank` of `workers` reads the lanes l with l mod workers = rank, so the content of a global batch depends on
    the seed, the epoch and its number, and never on the number of workers.
    """

    def __init__(
        self,
        table: str,
        manifest: Manifest,
        split: str,
        columns: BatchColumns,
        *,
        global_batch_size: int,
        rank: int,
        workers: int,
        seed: int | None = None,
        shuffle_rows: int = 1,
        first_step: int = 0,
    ) -> None:
        """Prepares to read.

        Args:
            table: folder or URI of the feature table.
            manifest: of that table.
            split: name of the split.
            columns: the columns of a batch.
            global_batch_size: rows of a global batch, a multiple of the lanes.
            rank: number of this worker.
            workers: number of workers, which must divide the lanes.
            seed: of the order of rows and of their noise; None reads in the order of the table.
            shuffle_rows: rows over all lanes that are shuffled together.
            first_step: steps that the run made before it began this split; gives its rows different noise.

        Raises:
            UserError: the workers do not divide the lanes, the batch size is not a multiple of the lanes, or the
                split is not in the table or has no rows.
        """
        check_division(manifest.lanes, workers, global_batch_size)
        self._table = table
        self._columns = columns
        self._rows_per_lane = global_batch_size // manifest.lanes
        self._lanes = [lane for lane in range(manifest.lanes) if lane % workers == rank]
        self._groups = [lane_groups(manifest, split, lane) for lane in self._lanes]
        self._lane_rows = lane_rows(manifest, split)
        if not any(self._lane_rows):
            raise UserError(f"The split {split!r} of the feature table {table} has no rows.")
        self._workers = workers
        self._noise_seed = (seed or 0, first_step)
        self._shuffle = None if seed is None else Shuffle(seed, -(-shuffle_rows // manifest.lanes))
        self._lists = frozenset(column.name for column in manifest.columns if column.type.startswith("list"))
        self._no_keys = null_keys(table, manifest, split, columns)
        self.steps_per_epoch = steps_per_epoch(self._lane_rows, self._rows_per_lane)
        self.rows = sum(self._lane_rows)

    def epoch(self, position: Position) -> Iterator[Batch]:
        """The batches from a position to the end of its epoch. A new iterator, independent of any other."""
        g = self._rows_per_lane
        threads = ThreadPoolExecutor(torch.get_num_threads(), "manygate-read")
        try:
            streams = [
                LaneStream(
                    self._table,
                    groups,
                    self._columns.read,
                    lane,
                    self._shuffle,
                    position.epoch,
                    position.step * g,
                    threads,
                )
                for lane, groups in zip(self._lanes, self._groups, strict=True)
            ]
            step = position.step
            steps_per_block = max(1, BLOCK_ROWS // (g * len(self._lanes)))
            while step < self.steps_per_epoch:
                steps = min(steps_per_block, self.steps_per_epoch - step)
                rows = LaneRows([stream.take(steps * g) for stream in streams], steps, g)
                block = ColumnBlock(self._columns, self._lists, rows, self._no_keys)
                yield from self._cut(block, Position(position.epoch, step), steps)
                step += steps
        finally:
            threads.shutdown(cancel_futures=True)

    def _cut(self, block: ColumnBlock, first: Position, steps: int) -> Iterator[Batch]:
        g = self._rows_per_lane
        weights = block.is_real.astype(np.float32)
        keys = noise_keys(self._noise_seed, first.epoch, self._lanes, first.step * g, steps, g).reshape(steps, -1)
        for i in range(steps):
            step = first.step + i
            is_last = step + 1 == self.steps_per_epoch
            total = global_weight(self._lane_rows, g, step)
            yield Batch(
                ids=block.ids(i),
                sequences=block.sequences(i),
                numerics=block.numerics(i),
                labels=block.labels(i),
                scenarios=block.scenarios(i),
                weights=torch.from_numpy(weights[i]),
                weight_total=torch.tensor(total / self._workers, dtype=torch.float32),
                noise_keys=torch.from_numpy(keys[i]),
                position=Position(first.epoch + 1, 0) if is_last else Position(first.epoch, step + 1),
                keys=block.keys(i),
                task_weights=block.task_weights(i),
                references=block.references(i),
            )


def null_keys(table: str, manifest: Manifest, split: str, columns: BatchColumns) -> pa.Table:
    """One row of nulls in the key columns, whose types are read from a file of the split."""
    if not columns.keys:
        return pa.table({})
    path = next(file.path for p in manifest.split(split) for lane in p.lanes for file in lane)
    uri = storage.join(table, path)
    filesystem, full = storage.resolve(uri)
    schema = storage.read_again(uri, lambda: pq.read_schema(full, filesystem=filesystem))
    return pa.table({key: pa.nulls(1, schema.field(KEY + key).type) for key in columns.keys})
