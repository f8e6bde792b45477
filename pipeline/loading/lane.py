"""One lane of a feature table as a stream of rows in the order of an epoch."""

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import UserError
from pipeline.loading.order import RowGroup, Shuffle, Window, epoch_windows, window_permutation


@dataclass(frozen=True)
class Rows:
    """Some of the rows of a window, in the order in which they are to be read."""

    table: pa.Table  # of the whole window, in one chunk a column
    numbers: dict[str, np.ndarray]  # its columns of numbers without nulls
    start: int
    stop: int

    @staticmethod
    def of(table: pa.Table) -> "Rows":
        """All rows of a window."""
        single = {name: table[name].chunk(0) for name in table.column_names}
        plain = (name for name, c in single.items() if pa.types.is_primitive(c.type) and not c.null_count)
        return Rows(table, {name: single[name].to_numpy() for name in plain}, 0, table.num_rows)

    def __len__(self) -> int:
        return self.stop - self.start

    def part(self, start: int, stop: int) -> "Rows":
        """The rows from `start` to `stop`, counted from the first of these."""
        return replace(self, start=self.start + start, stop=self.start + stop)

    def number(self, column: str) -> np.ndarray:
        """A column of numbers without nulls."""
        return self.numbers[column][self.start : self.stop]

    def column(self, column: str) -> pa.Array:
        """A column of any type."""
        return self.table[column].chunk(0).slice(self.start, len(self))


class LaneStream:
    """Gives a lane's rows in the order of one epoch, from any row on, without reading what lies before.

    While a window is used the next one is read: two of them are in memory.
    """

    def __init__(
        self,
        table: str,
        groups: list[RowGroup],
        columns: list[str],
        lane: int,
        shuffle: Shuffle | None,
        epoch: int,
        start_row: int,
        threads: Executor,
    ) -> None:
        self._table = table
        self._columns = columns
        self._lane = lane
        self._shuffle = shuffle
        self._epoch = epoch
        self._threads = threads
        self._pieces = self._read(epoch_windows(groups, shuffle, epoch, lane), start_row)
        self._rest: Rows | None = None

    def take(self, rows: int) -> list[Rows]:
        """The next `rows` rows, in pieces; fewer only at the end of the lane."""
        taken = []
        while rows > 0:
            piece = self._rest or next(self._pieces, None)
            if piece is None:
                break
            count = min(rows, len(piece))
            taken.append(piece.part(0, count))
            self._rest = piece.part(count, len(piece)) if count < len(piece) else None
            rows -= count
        return taken

    def _read(self, windows: list[Window], start_row: int) -> Iterator[Rows]:
        first = 0
        while first < len(windows) and start_row >= windows[first].rows:
            start_row -= windows[first].rows
            first += 1
        ahead = [self._threads.submit(self._read_window, window) for window in windows[first : first + 1]]
        for number in range(first, len(windows)):
            rows = ahead.pop().result()
            if number + 1 < len(windows):
                ahead.append(self._threads.submit(self._read_window, windows[number + 1]))
            yield rows.part(start_row, len(rows))
            start_row = 0

    def _read_window(self, window: Window) -> Rows:
        table = pa.concat_tables([self._read_group(group) for group in window.groups]).combine_chunks()
        if self._shuffle is not None:
            # All of a column at once: it fits into a cache, where later bits of all columns in turn would not.
            table = table.take(pa.array(window_permutation(window, self._shuffle, self._epoch, self._lane)))
        return Rows.of(table)

    def _read_group(self, group: RowGroup) -> pa.Table:
        uri = storage.join(self._table, group.path)
        filesystem, path = storage.resolve(uri)

        def read() -> pa.Table:
            with pq.ParquetFile(path, filesystem=filesystem) as file:
                return file.read_row_group(group.index, columns=self._columns, use_threads=False)

        try:
            rows = storage.read_again(uri, read)
        except storage.StoreError:  # says nothing about the file
            raise
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"Cannot read {group.path} of the feature table {self._table}: {' '.join(str(error).split())}. Train "
                "again if it was just made anew; else make it so with `manygate preprocess EXPERIMENT --overwrite`."
            ) from error
        if rows.num_rows != group.rows:
            raise UserError(
                f"{group.path} of the feature table {self._table} was changed: row group {group.index} has "
                f"{rows.num_rows} rows, the manifest says {group.rows}. Make the table again."
            )
        return rows
