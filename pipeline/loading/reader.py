"""Feature table to batches: one worker's share of every global batch."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline import storage
from pipeline.errors import UserError
from pipeline.loading.batch import Batch, Position
from pipeline.loading.columns import BatchColumns, ColumnBlock
from pipeline.loading.lane import LaneStream
from pipeline.loading.order import Shuffle, global_weight, lane_groups, lane_rows, noise_keys, steps_per_epoch
from pipeline.table.manifest import KEY, Manifest

# Rows of one worker that are gathered at a time: enough to make a gather worth its overhead, little in memory.
BLOCK_ROWS = 65_536


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
            columns: what a batch holds.
            global_batch_size: rows of a global batch, a multiple of the lanes.
            rank: this worker.
            workers: all workers; they must divide the lanes.
            seed: of the order of rows and of their noise; None reads in the order of the table.
            shuffle_rows: rows over all lanes that are shuffled together.
            first_step: steps of the run before those of this split, which keep the noise of its rows apart.

        Raises:
            UserError: the workers do not divide the lanes, the batch size is no multiple of them, or the split is
                not in the table or has no rows.
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
        self._pad = padding_row(table, manifest, split, columns)
        self.steps_per_epoch = steps_per_epoch(self._lane_rows, self._rows_per_lane)
        self.rows = sum(self._lane_rows)

    def epoch(self, position: Position) -> Iterator[Batch]:
        """The batches from a position to the end of its epoch. A new iterator, independent of any other."""
        g = self._rows_per_lane
        streams = [
            LaneStream(self._table, groups, self._columns.read, lane, self._shuffle, position.epoch, position.step * g)
            for lane, groups in zip(self._lanes, self._groups, strict=True)
        ]
        step = position.step
        steps_a_block = max(1, BLOCK_ROWS // (g * len(self._lanes)))
        while step < self.steps_per_epoch:
            steps = min(steps_a_block, self.steps_per_epoch - step)
            rows, is_real = interleave([stream.take(steps * g) for stream in streams], self._pad, steps, g)
            keys = noise_keys(self._noise_seed, position.epoch, self._lanes, step * g, steps, g).ravel()
            yield from self._cut(ColumnBlock(rows, self._columns), is_real, keys, Position(position.epoch, step), steps)
            step += steps

    def _cut(
        self, block: ColumnBlock, is_real: np.ndarray, keys: np.ndarray, first: Position, steps: int
    ) -> Iterator[Batch]:
        size = self._rows_per_lane * len(self._lanes)
        for i in range(steps):
            start, stop = i * size, (i + 1) * size
            step = first.step + i
            is_last = step + 1 == self.steps_per_epoch
            total = global_weight(self._lane_rows, self._rows_per_lane, step)
            yield Batch(
                ids=block.ids(start, stop),
                sequences=block.sequences(start, stop),
                numerics=block.numerics(start, stop),
                labels=block.labels(start, stop),
                scenarios=block.scenarios(start, stop),
                weights=torch.from_numpy(is_real[start:stop].astype(np.float32)),
                weight_total=torch.tensor(total / self._workers, dtype=torch.float32),
                noise_keys=torch.from_numpy(keys[start:stop]),
                position=Position(first.epoch + 1, 0) if is_last else Position(first.epoch, step + 1),
                keys=block.keys(start, stop),
            )


def check_division(lanes: int, workers: int, global_batch_size: int) -> None:
    """Raises UserError unless workers divide lanes and lanes divide the global batch."""
    if lanes % workers:
        possible = [w for w in range(1, lanes + 1) if lanes % w == 0]
        raise UserError(
            f"{workers} workers do not divide the {lanes} lanes of the feature table: use {possible} workers, "
            "or make the table again with another table.lanes."
        )
    if global_batch_size % lanes:
        raise UserError(
            f"A global batch of {global_batch_size} rows is no multiple of the {lanes} lanes of the feature table: "
            f"use {max(global_batch_size // lanes, 1) * lanes}."
        )


def interleave(lanes: list[list[pa.Table]], pad: pa.Table, steps: int, g: int) -> tuple[pa.Table, np.ndarray]:
    """Rows of several lanes in the order of batches: step by step, g rows of each lane in turn.

    Args:
        lanes: pieces of each lane's next rows; fewer than ``steps * g`` where a lane has ended.
        pad: the row that stands where a lane has no more.
        steps: batches to make.
        g: rows of a lane in a batch.

    Returns:
        A table of ``steps * lanes * g`` rows, and for each row whether it is a real one.
    """
    counts = np.array([sum(piece.num_rows for piece in pieces) for pieces in lanes])
    starts = np.concatenate([[0], np.cumsum(counts)])
    rows = pa.concat_tables([*(piece for pieces in lanes for piece in pieces), pad]).combine_chunks()
    within = np.arange(steps)[:, None, None] * g + np.arange(g)  # (steps, 1, g)
    is_real = within < counts[:, None]  # (steps, lanes, g)
    index = np.where(is_real, starts[:-1, None] + within, starts[-1])
    return rows.take(pa.array(index.ravel())), is_real.ravel()


def padding_row(table: str, manifest: Manifest, split: str, columns: BatchColumns) -> pa.Table:
    """One row of a table: ids 0, numbers 0, empty lists, null keys."""
    path = next(file.path for p in manifest.split(split) for lane in p.lanes for file in lane)
    uri = storage.join(table, path)
    filesystem, full = storage.resolve(uri)
    whole = storage.read_again(uri, lambda: pq.read_schema(full, filesystem=filesystem))
    schema = pa.schema([whole.field(name) for name in columns.read])
    return pa.table([_padding_value(field) for field in schema], schema=schema)


def _padding_value(field: pa.Field) -> pa.Array:
    if field.name.startswith(KEY):
        return pa.nulls(1, field.type)
    return pa.array([[]], field.type) if pa.types.is_list(field.type) else pa.array([0]).cast(field.type)
