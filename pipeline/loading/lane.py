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
class WindowRows:
    """Some of the rows of a window, in reading order."""

    others: pa.Table  # all other columns of the whole window, in one chunk each
    numbers: dict[str, np.ndarray]  # columns of numbers without nulls of the whole window
    start: int
    stop: int

    @staticmethod
    def of(table: pa.Table, order: np.ndarray | None) -> "WindowRows":
        """All rows of a window, in the given order; None keeps the order of the table."""
        numbers, others = {}, []
        for name, column in zip(table.column_names, table.columns, strict=True):
            is_number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
            if not is_number or column.null_count:
                others.append(name)
                continue
            # Permutes a whole column at once: one column fits into a cache, pieces of all columns in turn would not.
            values = column.combine_chunks().to_numpy()
            # Not values[order], which would hold the interpreter lock while other threads have work to do.
            numbers[name] = values if order is None else values.take(order, mode="clip")
        rest = table.select(others).combine_chunks()
        return WindowRows(rest if order is None else rest.take(pa.array(order)), numbers, 0, len(table))

    def __len__(self) -> int:
        return self.stop - self.start

    def part(self, start: int, stop: int) -> "WindowRows":
        """The rows from `start` to `stop`, counted from the first row here."""
        return replace(self, start=self.start + start, stop=self.start + stop)

    def number(self, column: str) -> np.ndarray:
        """A column of numbers without nulls."""
        return self.numbers[column][self.start : self.stop]

    def column(self, column: str) -> pa.Array:
        """A column of any type."""
        whole = pa.array(self.numbers[column]) if column in self.numbers else self.others[column].chunk(0)
        return whole.slice(self.start, len(self))


class LaneStream:
    """A lane's rows in the order of one epoch, from any row on, without reading the rows before it.

    While a window is used, the next window is read: two windows are in memory.
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
        self._rest: WindowRows | None = None

    def take(self, rows: int) -> list[WindowRows]:
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

    def _read(self, windows: list[Window], start_row: int) -> Iterator[WindowRows]:
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

    def _read_window(self, window: Window) -> WindowRows:
        order = None
        if self._shuffle is not None:
            order = window_permutation(window, self._shuffle, self._epoch, self._lane)
        files: dict[str, list[RowGroup]] = {}
        for group in window.groups:
            files.setdefault(group.path, []).append(group)
        read = {group: rows for path, groups in files.items() for group, rows in self._read_groups(path, groups)}
        return WindowRows.of(pa.concat_tables([read[group] for group in window.groups]), order)

    def _read_groups(self, path: str, groups: list[RowGroup]) -> list[tuple[RowGroup, pa.Table]]:
        """Row groups of one file, which is opened once."""
        uri = storage.join(self._table, path)
        filesystem, resolved = storage.resolve(uri)

        def read() -> list[pa.Table]:
            with pq.ParquetFile(resolved, filesystem=filesystem) as file:
                return [file.read_row_group(group.index, columns=self._columns, use_threads=False) for group in groups]

        try:
            tables = storage.read_again(uri, read)
        except storage.StoreError:  # the store failed: the file may be sound
            raise
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"Cannot read {path} of the feature table {self._table}: {' '.join(str(error).split())}. If "
                "the table has just been replaced, train again; else run `manygate preprocess EXPERIMENT --overwrite`."
            ) from error
        for group, rows in zip(groups, tables, strict=True):
            if rows.num_rows != group.rows:
                raise UserError(
                    f"{path} of the feature table {self._table} has been changed: row group {group.index} has "
                    f"{rows.num_rows} rows, but {group.rows} in the manifest. Make the table again."
                )
        return list(zip(groups, tables, strict=True))
