"""The use of each expert by the rows of each scenario: sums while a split is predicted, means at the end."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.layers.scenario import FinestScenario
from pipeline.config.logs import ScenarioConfig
from pipeline.evaluation.split_metrics import cells_of
from pipeline.metrics.registry import ALL_ROWS
from pipeline.sharding.module import StepOutput
from pipeline.workers.worker import Worker

UNIT = 2**30
"""Shares are added as multiples of 1 / UNIT. This is exact: workers and the order of rows change no bit."""

Counts = NDArray[np.int64] | NDArray[np.float64]


class ExpertUse:
    """Sums of this worker over its rows, per layer and finest scenario: ``(finest, groups, experts)``."""

    def __init__(self, tasks: list[str], scenarios: list[ScenarioConfig], has_weights: bool = False) -> None:
        """Begins with empty sums.

        Args:
            tasks: names.
            scenarios: the levels.
            has_weights: whether a row counts by its weight, the largest of its weights for tasks. The sums are then
                exact only up to rounding.
        """
        self._has_weights = has_weights
        self._tasks = tasks
        self._scenarios = scenarios
        self._shape = [len(level.labels) for level in scenarios]
        self._finest = FinestScenario([level.labels for level in scenarios])
        self._rows: Tensor | None = None  # (finest,)
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}  # layer -> shares in units, rows that selected

    def add(self, output: StepOutput) -> None:
        """Adds a batch; rows of weight 0 are padding and are ignored."""
        finest = self._finest(output.scenarios)
        if self._has_weights and output.task_weights is not None:
            counts = output.task_weights.rows.double()
        else:
            counts = (output.weights > 0).long()
        if self._rows is None:
            self._rows = counts.new_zeros(self._finest.count)
        self._rows.index_add_(0, finest, counts)
        for layer, shares in output.experts.items():
            units = (shares.double() * UNIT).round().to(counts.dtype)
            for total, values in zip(self._sums_of(layer, units), (units, (shares > 0).to(counts.dtype)), strict=True):
                total.index_add_(0, finest, values.transpose(0, 1) * counts[:, None, None])

    def total(self, worker: Worker) -> dict[str, Any]:
        """Mean use over the rows of all workers, on the first one. Collective.

        Returns:
            ``{LAYER: {"groups": [names], "weight": {CELL: [[mean share] * experts] * groups}, "selected": {CELL:
            [[share of rows]]}}}``; empty on other workers. Groups are the tasks, or "all tasks" if they share a
            gate; cells are "all" and every scenario that has rows. An expert is selected where its share is not 0.
        """
        gathered = worker.gather(
            (
                None if self._rows is None else self._rows.cpu().numpy(),
                {layer: (units.cpu().numpy(), picks.cpu().numpy()) for layer, (units, picks) in self._sums.items()},
            )
        )
        parts = [part for part in gathered or [] if part[0] is not None]
        if not parts:
            return {}
        rows = sum(part[0] for part in parts)
        return {
            layer: self._means(rows, *(sum(part[1][layer][i] for part in parts) for i in range(2)))
            for layer in parts[0][1]
        }

    def _sums_of(self, layer: str, units: Tensor) -> tuple[Tensor, Tensor]:
        if layer not in self._sums:
            groups, _, experts = units.shape
            shape = (self._finest.count, groups, experts)
            self._sums[layer] = units.new_zeros(shape), units.new_zeros(shape)
        return self._sums[layer]

    def _means(self, rows: Counts, units: Counts, picks: Counts) -> dict[str, Any]:
        with_rows = np.flatnonzero(rows)
        indices = np.stack(np.unravel_index(with_rows, self._shape), 1).astype(np.int32)
        cells = {ALL_ROWS: np.arange(len(with_rows))} | cells_of(indices, self._scenarios)[0]
        weight, selected = {}, {}
        for label, members in cells.items():
            count = rows[with_rows[members]].sum().item()
            if count:
                weight[label] = (units[with_rows[members]].sum(0) / (count * UNIT)).tolist()
                selected[label] = (picks[with_rows[members]].sum(0) / count).tolist()
        return {"groups": self._groups(units.shape[1]), "weight": weight, "selected": selected}

    def _groups(self, count: int) -> list[str]:
        return ["all tasks"] if count == 1 else self._tasks
