"""Arrow columns of many rows to tensors of one batch, without a Python loop over rows or values."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torchrec import KeyedJaggedTensor

from pipeline.table.manifest import KEY, LABEL, SCENARIO


@dataclass(frozen=True)
class BatchColumns:
    """Which columns of a feature table make a Batch, in the order of its tensors."""

    ids: tuple[str, ...]
    sequences: tuple[str, ...]
    numerics: tuple[str, ...]
    tasks: tuple[str, ...]
    scenarios: tuple[str, ...]
    keys: tuple[str, ...] = ()

    @property
    def read(self) -> list[str]:
        """Names of the columns as they stand in lane files."""
        return [
            *self.ids,
            *self.sequences,
            *self.numerics,
            *(LABEL + task for task in self.tasks),
            *(SCENARIO + level for level in self.scenarios),
            *(KEY + key for key in self.keys),
        ]


class RaggedColumn:
    """A column of ids: values end to end, and where each row begins."""

    def __init__(self, column: pa.Array) -> None:
        if pa.types.is_list(column.type):
            self.offsets = column.offsets.to_numpy()
            self.values = column.values.to_numpy()
        else:
            self.offsets = None
            self.values = column.to_numpy()

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Values of the rows from start to stop."""
        if self.offsets is None:
            return self.values[start:stop]
        return self.values[self.offsets[start] : self.offsets[stop]]

    def lengths(self, start: int, stop: int) -> np.ndarray:
        """Number of values of each of those rows."""
        if self.offsets is None:
            return np.ones(stop - start, np.int32)
        return np.diff(self.offsets[start : stop + 1])


class ColumnBlock:
    """Contiguous rows of many batches, opened once; every batch is then a few slices."""

    def __init__(self, rows: pa.Table, columns: BatchColumns) -> None:
        single = {name: rows[name].combine_chunks() for name in columns.read}
        self._ids = [RaggedColumn(single[name]) for name in columns.ids]
        self._sequences = [RaggedColumn(single[name]) for name in columns.sequences]
        self._numerics = [single[name].to_numpy() for name in columns.numerics]
        self._labels = [single[LABEL + name].to_numpy() for name in columns.tasks]
        self._scenarios = [single[SCENARIO + name].to_numpy() for name in columns.scenarios]
        self._columns = columns
        self._keys = rows.select([KEY + key for key in columns.keys]).rename_columns(list(columns.keys))

    def ids(self, start: int, stop: int) -> KeyedJaggedTensor | None:
        return _keyed(self._columns.ids, self._ids, start, stop)

    def sequences(self, start: int, stop: int) -> KeyedJaggedTensor | None:
        return _keyed(self._columns.sequences, self._sequences, start, stop)

    def numerics(self, start: int, stop: int) -> torch.Tensor:
        return _matrix(self._numerics, start, stop, np.float32)

    def labels(self, start: int, stop: int) -> torch.Tensor:
        return _matrix(self._labels, start, stop, np.float32)

    def scenarios(self, start: int, stop: int) -> torch.Tensor:
        return _matrix(self._scenarios, start, stop, np.int64)

    def keys(self, start: int, stop: int) -> pa.Table | None:
        return self._keys.slice(start, stop - start) if self._columns.keys else None


def _keyed(names: tuple[str, ...], columns: list[RaggedColumn], start: int, stop: int) -> KeyedJaggedTensor | None:
    if not names:
        return None
    values = np.concatenate([column.rows(start, stop) for column in columns], dtype=np.int64)
    lengths = np.concatenate([column.lengths(start, stop) for column in columns], dtype=np.int32)
    return KeyedJaggedTensor(
        keys=list(names), values=torch.from_numpy(values), lengths=torch.from_numpy(lengths), stride=stop - start
    )


def _matrix(columns: list[np.ndarray], start: int, stop: int, dtype: type[np.generic]) -> torch.Tensor:
    out = np.empty((stop - start, len(columns)), dtype)
    for i, column in enumerate(columns):
        out[:, i] = column[start:stop]
    return torch.from_numpy(out)
