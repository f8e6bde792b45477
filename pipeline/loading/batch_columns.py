"""Rows of many batches, gathered column by column into the memory that their tensors use. No Python loop over rows."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torchrec import KeyedJaggedTensor

from pipeline.loading.lane import WindowRows
from pipeline.table.manifest import ID_WEIGHTS, KEY, LABEL, REFERENCE, SCENARIO, WEIGHT


@dataclass(frozen=True)
class BatchColumns:
    """The columns of a feature table that make up a Batch, in the order of its tensors."""

    ids: tuple[str, ...]
    sequences: tuple[str, ...]
    numerics: tuple[str, ...]
    tasks: tuple[str, ...]
    scenarios: tuple[str, ...]
    keys: tuple[str, ...] = ()
    has_weights: bool = False  # whether there is a column of weights for each task
    may_lack_labels: bool = False  # whether a label may be NaN: the row has no label of the task
    relative: frozenset[str] = frozenset()  # tasks whose references are read, see `Batch.references`
    weighted: frozenset[str] = frozenset()  # features in `ids` and `sequences` whose ids have weights

    @property
    def weights(self) -> list[str]:
        return [WEIGHT + task for task in self.tasks] if self.has_weights else []

    @property
    def read(self) -> list[str]:
        """Names of the columns in lane files."""
        return [
            *self.ids,
            *self.sequences,
            *(ID_WEIGHTS + name for name in (*self.ids, *self.sequences) if name in self.weighted),
            *self.numerics,
            *(LABEL + task for task in self.tasks),
            *self.weights,
            *(REFERENCE + task for task in self.tasks if task in self.relative),
            *(SCENARIO + level for level in self.scenarios),
            *(KEY + key for key in self.keys),
        ]


@dataclass(frozen=True)
class LaneRows:
    """The next rows of every lane of a worker: `steps` batches of `rows_per_lane` rows of each lane.

    A lane that has ended is padded with rows of zeros and empty lists.
    """

    lanes: list[list[WindowRows]]
    steps: int
    rows_per_lane: int

    @property
    def batch_rows(self) -> int:
        return len(self.lanes) * self.rows_per_lane

    @property
    def counts(self) -> np.ndarray:
        """Number of rows from the table in each lane."""
        return np.array([sum(map(len, pieces)) for pieces in self.lanes])

    @property
    def row_numbers(self) -> np.ndarray:
        """Number of each row among the rows of its lane, ``(steps, 1, rows_per_lane)``."""
        return np.arange(self.steps * self.rows_per_lane).reshape(self.steps, 1, self.rows_per_lane)

    def is_real(self) -> np.ndarray:
        """Whether each row is from the table and not padding, ``(steps, batch_rows)``."""
        return (self.row_numbers < self.counts[:, None]).reshape(self.steps, -1)

    def gather(self, column: str, out: np.ndarray) -> None:
        """Gathers a column of numbers into ``(steps, batch_rows)``."""
        target = out.reshape(self.steps, len(self.lanes), self.rows_per_lane)
        assert np.shares_memory(target, out)
        count = self.steps * self.rows_per_lane
        for lane, pieces in enumerate(self.lanes):
            parts = [piece.number(column) for piece in pieces]
            missing = count - sum(map(len, parts))
            if missing:
                parts.append(np.zeros(missing, out.dtype))
            rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
            target[:, lane] = rows.reshape(self.steps, -1)

    def gather_lists(self, column: str) -> list["LaneLists"]:
        """Gathers a column of lists, lane by lane."""
        return [LaneLists.of([piece.column(column) for piece in pieces], self) for pieces in self.lanes]


@dataclass(frozen=True)
class LaneLists:
    """Lists of ids, or of their weights, of one lane, end to end."""

    values: np.ndarray
    offsets: np.ndarray  # (rows + 1,)

    @staticmethod
    def of(parts: list[pa.ListArray], rows: LaneRows) -> "LaneLists":
        offsets = np.zeros(rows.steps * rows.rows_per_lane + 1, np.int64)
        at = 0
        for part in parts:
            ends = part.offsets.to_numpy()[1:]
            offsets[at + 1 : at + 1 + len(part)] = offsets[at] + ends - part.offsets[0].as_py()
            at += len(part)
        offsets[at + 1 :] = offsets[at]
        values = [part.flatten().to_numpy() for part in parts]
        return LaneLists(np.concatenate(values) if values else np.empty(0, np.int32), offsets)


class KeyedColumns:
    """Columns of single ids and of lists of ids, as the KeyedJaggedTensors of batches.

    They have weights only if ids of at least one column do; ids of all others then have the weight 1.
    """

    def __init__(self, names: tuple[str, ...], lists: frozenset[str], weighted: frozenset[str], rows: LaneRows) -> None:
        self._names = list(names)
        self._rows = rows
        singles = [name for name in names if name not in lists]
        self._singles = np.empty((rows.steps, len(singles), rows.batch_rows), np.int32)
        self._place = {name: place for place, name in enumerate(singles)}
        for name, place in self._place.items():
            rows.gather(name, self._singles[:, place])
        self._lists = {name: rows.gather_lists(name) for name in names if name in lists}
        self._weights = {name: rows.gather_lists(ID_WEIGHTS + name) for name in names if name in weighted}
        # Padding rows also hold one id for single-valued features. Without lists, all batches have the same lengths.
        self._lengths = np.ones((rows.steps if self._lists else 1, len(names), rows.batch_rows), np.int32)
        for name, lanes in self._lists.items():
            column = self._lengths[:, self._names.index(name)]
            for lane, lane_lists in enumerate(lanes):
                start = lane * rows.rows_per_lane
                lengths = np.diff(lane_lists.offsets).reshape(rows.steps, -1)
                column[:, start : start + rows.rows_per_lane] = lengths

    def batch(self, step: int) -> KeyedJaggedTensor | None:
        if not self._names:
            return None
        lengths = self._lengths[step if self._lists else 0]
        per_key = lengths.sum(1).tolist() if self._lists else [self._rows.batch_rows] * len(self._names)
        return KeyedJaggedTensor(
            keys=self._names,
            values=torch.from_numpy(self._values(step)),
            lengths=torch.from_numpy(lengths.reshape(-1)),
            stride=self._rows.batch_rows,
            length_per_key=per_key,
            weights=torch.from_numpy(self._id_weights(step, per_key)) if self._weights else None,
        )

    def _values(self, step: int) -> np.ndarray:
        if not self._lists:
            return self._singles[step].reshape(-1)  # already in the right order
        parts: list[np.ndarray] = []
        for name in self._names:
            if name in self._place:
                parts.append(self._singles[step, self._place[name]])
            else:
                parts += self._step_of(self._lists[name], step)
        return np.concatenate(parts, dtype=np.int32)

    def _id_weights(self, step: int, per_key: list[int]) -> np.ndarray:
        parts: list[np.ndarray] = []
        for name, count in zip(self._names, per_key, strict=True):
            if name in self._weights:
                parts += self._step_of(self._weights[name], step)
            else:
                parts.append(np.ones(count, np.float32))
        return np.concatenate(parts, dtype=np.float32)

    def _step_of(self, lanes: list[LaneLists], step: int) -> list[np.ndarray]:
        start, stop = step * self._rows.rows_per_lane, (step + 1) * self._rows.rows_per_lane
        return [lane.values[lane.offsets[start] : lane.offsets[stop]] for lane in lanes]


class ColumnBlock:
    """The columns of a block of batches."""

    def __init__(self, columns: BatchColumns, lists: frozenset[str], rows: LaneRows, no_keys: pa.Table) -> None:
        """Gathers all columns.

        Args:
            columns: of the batches.
            lists: names of the columns that hold lists.
            rows: of the batches.
            no_keys: one row of nulls in the key columns, used for padding rows.
        """
        self.is_real = rows.is_real()
        self._ids = KeyedColumns(columns.ids, lists, columns.weighted, rows)
        self._sequences = KeyedColumns(columns.sequences, lists, columns.weighted, rows)
        self._numerics = _matrix(list(columns.numerics), rows, np.float32)
        self._labels = _matrix([LABEL + name for name in columns.tasks], rows, np.float32)
        self._task_weights = _task_weights(columns, rows, self._labels, self.is_real)
        self._references = _references(columns, rows)
        self._scenarios = _matrix([SCENARIO + name for name in columns.scenarios], rows, np.int64, np.int32)
        self._keys = _key_rows(columns.keys, rows, self.is_real, no_keys) if columns.keys else None

    def ids(self, step: int) -> KeyedJaggedTensor | None:
        return self._ids.batch(step)

    def sequences(self, step: int) -> KeyedJaggedTensor | None:
        return self._sequences.batch(step)

    def numerics(self, step: int) -> torch.Tensor:
        return torch.from_numpy(self._numerics[step])

    def labels(self, step: int) -> torch.Tensor:
        return torch.from_numpy(self._labels[step])

    def task_weights(self, step: int) -> torch.Tensor | None:
        return torch.from_numpy(self._task_weights[step]) if self._task_weights is not None else None

    def references(self, step: int) -> np.ndarray | None:
        return self._references[step] if self._references is not None else None

    def scenarios(self, step: int) -> torch.Tensor:
        return torch.from_numpy(self._scenarios[step])

    def keys(self, step: int) -> pa.Table | None:
        rows = self.is_real.shape[1]
        return self._keys.slice(step * rows, rows) if self._keys is not None else None


def _matrix(
    names: list[str], rows: LaneRows, dtype: type[np.generic], stored: type[np.generic] | None = None
) -> np.ndarray:
    """Columns of numbers side by side, ``(steps, batch_rows, columns)``."""
    out = np.empty((rows.steps, rows.batch_rows, len(names)), dtype)
    column = np.empty((rows.steps, rows.batch_rows), stored or dtype)
    for i, name in enumerate(names):
        rows.gather(name, column)
        out[:, :, i] = column
    return out


def _task_weights(columns: BatchColumns, rows: LaneRows, labels: np.ndarray, is_real: np.ndarray) -> np.ndarray | None:
    """Weights of rows for tasks, ``(steps, batch_rows, tasks)``: 0 for padding and for rows without a label."""
    if not columns.has_weights and not columns.may_lack_labels:
        return None
    weights = _matrix(columns.weights, rows, np.float32) if columns.has_weights else np.ones_like(labels)
    weights[np.isnan(labels) | ~is_real[:, :, None]] = 0
    return weights


def _references(columns: BatchColumns, rows: LaneRows) -> np.ndarray | None:
    """See `Batch.references`: ``(steps, batch_rows, tasks)``."""
    if not columns.relative:
        return None
    references = np.ones((rows.steps, rows.batch_rows, len(columns.tasks)), np.float32)
    for k, task in enumerate(columns.tasks):
        if task in columns.relative:
            references[:, :, [k]] = _matrix([REFERENCE + task], rows, np.float32)
    return references


def _key_rows(names: tuple[str, ...], rows: LaneRows, is_real: np.ndarray, no_keys: pa.Table) -> pa.Table:
    """Key columns of all rows of all batches, one batch after the other."""
    counts = rows.counts
    starts = np.cumsum(counts) - counts
    at = (starts[:, None] + rows.row_numbers).reshape(rows.steps, -1)
    index = pa.array(np.where(is_real, at, counts.sum()).reshape(-1))
    columns = {}
    for name in names:
        chunks = [piece.column(KEY + name) for pieces in rows.lanes for piece in pieces]
        columns[name] = pa.chunked_array([*chunks, *no_keys[name].chunks], no_keys[name].type)
    return pa.table(columns).combine_chunks().take(index)
