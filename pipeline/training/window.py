"""Losses and AUC of the steps since the last log line, without a wait in the step."""

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.training.binned_auc import BinnedAuc
from pipeline.training.module import StepOutput
from pipeline.training.worker import Worker


class TrainWindow:
    """Running sums of this worker; `report` adds up the workers' and starts anew."""

    def __init__(self, names: list[str], binary: list[int], worker: Worker) -> None:
        self._names = names
        self._binary = binary
        self._worker = worker
        self._auc = BinnedAuc(binary, worker.device)
        self._sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=worker.device)  # losses, then steps

    def update(self, output: StepOutput) -> None:
        # Shares, so that the workers' sums add up to those of the global batches, also after their number changed.
        self._sums[:-1] += output.losses / self._worker.workers
        self._sums[-1] += 1 / self._worker.workers
        self._auc.update(output.scores, output.labels, output.weights)

    def report(self) -> dict[str, dict[str, float | None]]:
        """Task to mean loss over the steps and, for a binary task, AUC over their rows. Collective."""
        sums = self._worker.sum(self._sums.cpu())
        _check_finite(sums)
        self._auc.state.copy_(self._worker.sum(self._auc.state.cpu()))
        report: dict[str, dict[str, float | None]] = {
            name: {"loss": loss} for name, loss in zip(self._names, (sums[:-1] / sums[-1]).tolist(), strict=True)
        }
        for column, auc in zip(self._binary, self._auc.compute(), strict=True):
            report[self._names[column]]["auc"] = auc
        self._sums.zero_()
        self._auc.reset()
        return report

    def check_finite(self) -> None:
        """Raises UserError on every worker when a loss since the last report is no number. Collective."""
        _check_finite(self._worker.sum(self._sums.cpu().clone()))

    def state(self) -> dict[str, Tensor]:
        return {"sums": self._sums, "auc": self._auc.state}

    def add_state(self, state: dict[str, Tensor]) -> None:
        """Takes over what a worker had summed up when it was saved, beside what is here."""
        self._sums += state["sums"]
        self._auc.state += state["auc"]


def _check_finite(sums: Tensor) -> None:
    if not sums.isfinite().all():
        raise UserError(
            "A loss is not a finite number: training has diverged. Use a lower learning rate, a longer "
            "training.schedule.warmup_steps or training.clip_norm, and go on from the last checkpoint or start afresh."
        )
