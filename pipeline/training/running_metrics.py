"""Losses and AUC of the steps since the last log line, without waiting for the device in a step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.errors import DivergedError
from pipeline.sharding.module import StepOutput
from pipeline.training.binned_auc import BINS_SINCE, BinnedAuc
from pipeline.workers.worker import Worker


class RunningMetrics:
    """Running sums of this worker. `report` adds up those of all workers and resets them."""

    def __init__(
        self,
        names: list[str],
        binary: list[int],
        diagnostics: tuple[str, ...],
        worker: Worker,
        has_task_weights: bool = False,
        suspects: Sequence[str] = (),
    ) -> None:
        """Begins with empty sums.

        Args:
            names: of the tasks.
            binary: indices of the binary tasks.
            diagnostics: names of the model's diagnostics.
            worker: this worker.
            has_task_weights: whether the outputs have `task_weights`: losses then count by the weight of their rows.
            suspects: tasks with a loss of amounts that may have negative labels, for the error about their loss.
        """
        self._names = names
        self._binary = binary
        self._suspects = suspects
        self._diagnostics = diagnostics
        self._worker = worker
        self._auc = BinnedAuc(binary, worker.device)
        # Losses, then diagnostics, then steps, each step counted by how full its batch is; then, if rows have weights
        # for tasks, the weight of each task's losses.
        self._sizes = [len(names), len(diagnostics), 1, len(names) if has_task_weights else 0]
        self._finite_steps = torch.zeros((), dtype=torch.int64, device=worker.device)
        self._sums = torch.zeros(sum(self._sizes), dtype=torch.float64, device=worker.device)

    def update(self, output: StepOutput) -> None:
        # Divided by the number of workers: the sums over all workers are then those of the global batches, also after
        # the number of workers has changed.
        weights, part = output.task_weights, output.fill / self._worker.workers
        losses, diagnostics, steps, totals = self._sums.split(self._sizes)
        diagnostics += output.diagnostics * part
        steps += part
        if weights is None:
            losses += output.losses * part
        else:
            losses += output.losses * weights.totals / self._worker.workers
            totals += weights.totals / self._worker.workers
        self._finite_steps += self._sums.isfinite().all()  # no more of them after the first that is not finite
        self._auc.update(output.scores, output.labels, output.weights if weights is None else weights.values)

    def report(self) -> tuple[dict[str, dict[str, float | None]], dict[str, float]]:
        """Each task's mean loss over the rows of the steps and, if binary, their AUC; mean diagnostics. Collective.

        Where rows have weights for tasks, the mean is weighted; None without a label.
        """
        sums = self._worker.sum(self._sums.cpu())
        self._check_finite(sums)
        self._auc.state.copy_(self._worker.sum(self._auc.state.cpu()))
        losses, diagnostics, steps, totals = sums.split(self._sizes)
        divisors = totals if len(totals) else steps.expand_as(losses)
        report: dict[str, dict[str, float | None]] = {
            name: {"loss": (loss / divisor).item() if divisor > 0 else None}
            for name, loss, divisor in zip(self._names, losses, divisors, strict=True)
        }
        for column, auc in zip(self._binary, self._auc.compute(), strict=True):
            report[self._names[column]]["auc"] = auc
        means = dict(zip(self._diagnostics, (diagnostics / steps).tolist(), strict=True))
        self._sums.zero_()
        self._finite_steps.zero_()
        self._auc.reset()
        return report, means

    def finite_steps(self) -> int:
        """Steps of this process since the last report, before the first whose losses on this worker are not finite."""
        return int(self._finite_steps)

    def check_finite(self) -> None:
        """Raises DivergedError on every worker if a loss since the last report is not finite. Collective."""
        self._check_finite(self._worker.sum(self._sums.cpu().clone()))

    def state(self) -> dict[str, Tensor]:
        return {"sums": self._sums, "auc": self._auc.state}

    def add_state(self, state: dict[str, Tensor], arithmetic: int) -> None:
        """Adds the sums that a worker had saved.

        Args:
            state: of the worker.
            arithmetic: the version that saved it, see `checkpoint/arithmetic.py`. Histograms with other bins are left
                out.
        """
        self._sums += state["sums"]
        if arithmetic >= BINS_SINCE:
            self._auc.state += state["auc"]

    def _check_finite(self, sums: Tensor) -> None:
        if sums.isfinite().all():
            return
        wrong = [name for name, total in zip(self._names, sums, strict=False) if not total.isfinite()]
        suspects = [name for name in wrong if name in self._suspects]
        or_negative = (
            f", or a label of {' or '.join(suspects)} is below zero, which the loss does not allow, whatever the rates"
        )
        raise DivergedError(
            f"The loss of {' and '.join(wrong) or 'the trunk'} is not a finite number: training has diverged"
            f"{or_negative if suspects else ''}.",
            "Use a lower learning rate.",
        )
