"""One lane of a feature table as a stream of rows in the order of an epoch."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import UserError
from pipeline.loading.order import RowGroup, Shuffle, Window, epoch_windows, window_permutation


class LaneStream:
    """Gives a lane's rows in the order of one epoch, from any row on, without reading what lies before."""

    def __init__(
        self,
        table: str,
        groups: list[RowGroup],
        columns: list[str],
        lane: int,
        shuffle: Shuffle | None,
        epoch: int,
        start_row: int,
    ) -> None:
        self._table = table
        self._columns = columns
        self._lane = lane
        self._shuffle = shuffle
        self._epoch = epoch
        self._pieces = self._read(epoch_windows(groups, shuffle, epoch, lane), start_row)
        self._buffer: list[pa.Table] = []

    def take(self, rows: int) -> list[pa.Table]:
        """The next `rows` rows, in pieces; fewer only at the end of the lane."""
        while sum(piece.num_rows for piece in self._buffer) < rows:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._buffer.append(piece)
        taken = []
        while rows > 0 and self._buffer:
            piece = self._buffer.pop(0)
            taken.append(piece.slice(0, rows))
            if piece.num_rows > rows:
                self._buffer.insert(0, piece.slice(rows))
            rows -= taken[-1].num_rows
        return taken

    def _read(self, windows: list[Window], start_row: int) -> Iterator[pa.Table]:
        for window in windows:
            if start_row >= window.rows:
                start_row -= window.rows
                continue
            rows = pa.concat_tables([self._read_group(group) for group in window.groups]).combine_chunks()
            if self._shuffle is not None:
                rows = rows.take(pa.array(window_permutation(window, self._shuffle, self._epoch, self._lane)))
            yield rows.slice(start_row)
            start_row = 0

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
