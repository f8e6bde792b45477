"""AUC during training, from histograms of scores. Workers add them up, and memory does not grow with the rows."""

from math import asinh

import torch
from torch import Tensor

DEFAULT_BINS = 4096
LARGEST_LOGIT = 20.0
"""Of the bins: probabilities from 2e-9 to 1 - 2e-9. The first bin and the last one also have everything beyond."""
BINS_SINCE = 2
"""The version of `checkpoint/arithmetic.py` that has these bins; version 1 had equal bins on the probability."""


class BinnedAuc:
    """AUC of binary tasks from histograms of their logits, ``z = ln(p / (1 - p))`` of the probability p.

    A rare event needs bins on the logit: its probabilities are all in the first of equal bins on p. The bins are equal
    on ``asinh(z)``, and their width on z is therefore about ``0.0018 sqrt(1 + z^2)``: narrow around p = 1/2, where a
    model begins, and 0.02 at p = 2e-5.

    ``AUC = sum_b P_b (sum_{c<b} N_c + N_b / 2) / (P N)`` with the weights P_b and N_b of positives and negatives in
    bin b. Pairs that share a bin count half, so the distance to the exact AUC is at most ``sum_b P_b N_b / (2 P N)``:
    below .003 if the logits have a standard deviation of 1 (the usual distance is 1e-4), and more if a model
    predicts nearly the same for all rows.

    ``state`` is ``(2, tasks, bins)`` in float64, negatives first. Sum it over the workers with all_reduce, then
    `compute` and `reset`: a summed state contains the batches of all workers, and summing it again would count them
    twice. Counts below 2^53 are exact in float64, so rows of weight 1 give the same state in any order.
    """

    def __init__(self, columns: list[int], device: torch.device, bins: int = DEFAULT_BINS) -> None:
        """
        Args:
            columns: columns of predictions and labels that belong to binary tasks.
            device: of the predictions.
        """
        self.bins = bins
        # A tensor on the device: indexing by a Python list would copy the list there, and wait, at every update.
        self._columns = torch.tensor(columns, dtype=torch.long, device=device)
        self._offsets = torch.arange(len(columns), device=device) * bins
        self.state = torch.zeros(2, len(columns), bins, dtype=torch.float64, device=device)

    def update(self, predictions: Tensor, labels: Tensor, weights: Tensor) -> None:
        """Adds a batch, without waiting for the device.

        Args:
            predictions: probabilities, ``(batch, all tasks)``.
            labels: 0 or 1, ``(batch, all tasks)``; NaN where the weight is 0.
            weights: ``(batch,)``, or ``(batch, all tasks)``.
        """
        # In float64 two different probabilities of float32 have two different logits, and their order is kept.
        probabilities = predictions.detach().index_select(1, self._columns).double()
        logits = probabilities.log() - torch.log1p(-probabilities)
        position = logits.clamp_(-LARGEST_LOGIT, LARGEST_LOGIT).asinh() / asinh(LARGEST_LOGIT)  # from -1 to 1
        bin_of_row = ((position + 1) * (self.bins / 2)).long().clamp_(0, self.bins - 1)
        positive = labels.index_select(1, self._columns) > 0
        cells = positive * self._offsets.numel() * self.bins + self._offsets + bin_of_row
        wide = weights.unsqueeze(1) if weights.dim() == 1 else weights.index_select(1, self._columns)
        spread = wide.detach().double().expand_as(cells)
        self.state.view(-1).scatter_add_(0, cells.reshape(-1), spread.reshape(-1))

    def compute(self) -> list[float | None]:
        """AUC of each task, in the order of `columns`; None if it is undefined. Waits for the device.

        It is undefined for a task of which only one class was seen.
        """
        negative, positive = self.state.cpu()
        below = negative.cumsum(1) - negative
        won = (positive * (below + negative / 2)).sum(1)
        pairs = positive.sum(1) * negative.sum(1)
        return [w / p if p > 0 else None for w, p in zip(won.tolist(), pairs.tolist(), strict=True)]

    def reset(self) -> None:
        """Removes all batches."""
        self.state.zero_()
