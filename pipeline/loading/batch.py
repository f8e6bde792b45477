"""The input of a training step."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from pipeline.loading.position import Position


@dataclass
class Batch(Pipelineable):
    """One worker's part of a global batch."""

    ids: KeyedJaggedTensor | None  # pooled features
    sequences: KeyedJaggedTensor | None  # features whose table a sequence reads
    numerics: Tensor  # (batch, numerics) float32
    labels: Tensor  # (batch, tasks) float32, on the training scale; NaN where a row has no label of a task
    scenarios: Tensor  # (batch, levels) int64
    weights: Tensor  # (batch,) float32, 1 for rows of the table, 0 for padding
    weight_total: Tensor  # scalar: rows of the global batch divided by the number of workers
    noise_keys: Tensor  # (batch,) int64: keys of the rows' random draws, the same for any number of workers
    position: Position  # of the batch after this one
    keys: pa.Table | None = None  # key columns, read only if requested
    task_weights: Tensor | None = None
    """``(batch, tasks)`` float32: weights of the rows for the tasks, 0 without a label. None: every label exists and
    counts 1."""

    references: np.ndarray | None = None
    """``(batch, tasks)`` float32: the column that a target depends on, 1 for other tasks, NaN where it cannot be used.
    Read only if requested."""

    @property
    def rows(self) -> int:
        """Rows of this worker's part, padding included."""
        return len(self.weights)

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        return replace(
            self,
            ids=self.ids.to(device, non_blocking=non_blocking) if self.ids is not None else None,
            sequences=self.sequences.to(device, non_blocking=non_blocking) if self.sequences is not None else None,
            **{name: tensor.to(device, non_blocking=non_blocking) for name, tensor in self._tensors().items()},
        )

    def pin_memory(self) -> "Batch":
        return replace(
            self,
            ids=self.ids.pin_memory() if self.ids is not None else None,
            sequences=self.sequences.pin_memory() if self.sequences is not None else None,
            **{name: tensor.pin_memory() for name, tensor in self._tensors().items()},
        )

    def record_stream(self, stream: torch.Stream) -> None:
        for jagged in (self.ids, self.sequences):
            if jagged is not None:
                jagged.record_stream(stream)
        for tensor in self._tensors().values():
            tensor.record_stream(stream)

    def _tensors(self) -> dict[str, Any]:
        tensors = {name: getattr(self, name) for name in _TENSORS}
        return tensors if self.task_weights is None else {**tensors, "task_weights": self.task_weights}


_TENSORS = ("numerics", "labels", "scenarios", "weights", "weight_total", "noise_keys")
