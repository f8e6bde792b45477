"""Weights of the rows of a batch for each task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TaskWeights:
    """How much each row counts for each task, and the totals of the global batch.

    The weight of a row itself, where a model computes a value over rows, is the largest of its weights for the tasks:
    a row that counts for no task does not affect the model.
    """

    values: Tensor  # (batch, tasks), 0 or more; 0 for padding and for rows without a label
    totals: Tensor  # (tasks,): sum of the global batch / number of workers
    row_total: Tensor  # scalar: the same for `rows`; 1 if no row counts

    @staticmethod
    def of(values: Tensor, total: Callable[[Tensor], Tensor]) -> TaskWeights:
        """The weights of a batch. `total` sums a tensor over all workers. Collective."""
        rows = values.amax(1)
        # In float64, so that the totals hardly depend on the number of workers.
        sums = torch.cat([values.double().sum(0), rows.double().sum(0, keepdim=True), rows.new_ones(1).double()])
        summed = total(sums)
        totals = (summed[:-1] / summed[-1]).to(values.dtype)
        return TaskWeights(values, totals[:-1], divisor_of(totals[-1]))

    @property
    def rows(self) -> Tensor:
        """Weights of the rows themselves, ``(batch,)``."""
        return self.values.amax(1)

    @property
    def is_present(self) -> Tensor:
        """Whether any row of the global batch counts for a task, ``(tasks,)`` bool."""
        return self.totals > 0

    def mean(self, values: Tensor) -> Tensor:
        """Weighted means of ``(batch, tasks)``, this worker's share: ``(tasks,)``; 0 for a task without weight."""
        return (values * self.values).sum(0) / divisor_of(self.totals)


def divisor_of(totals: Tensor) -> Tensor:
    """The totals, and 1 instead of 0. Weights may be small fractions, so that no other total must be raised."""
    return torch.where(totals > 0, totals, 1.0)
