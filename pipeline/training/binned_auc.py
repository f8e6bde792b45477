"""AUC during training, from histograms of scores. Workers add them up, and memory does not grow with the rows."""

import torch
from torch import Tensor

DEFAULT_BINS = 4096


class BinnedAuc:
    """AUC of binary tasks from histograms of their probabilities, ``bins`` of equal width in [0, 1].

    ``AUC = sum_b P_b (sum_{c<b} N_c + N_b / 2) / (P N)`` with the weights P_b and N_b of positives and negatives in
    bin b. Pairs that share a bin count half, so the distance to the exact AUC is at most ``sum_b P_b N_b / (2 P N)``:
    small, unless most probabilities are in a few bins, as for a very rare event.

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
        probabilities = predictions.detach().index_select(1, self._columns).float()
        bin_of_row = (probabilities * self.bins).long().clamp_(0, self.bins - 1)
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
