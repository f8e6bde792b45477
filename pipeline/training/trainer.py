"""The trainer: one loop for every launcher and every device."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pipeline.config.experiment import Experiment
from pipeline.errors import UserError
from pipeline.loading.batch import Batch
from pipeline.loading.prefetch import prefetch
from pipeline.loading.reader import Reader
from pipeline.training.checkpoint import SaveFailedError, prune
from pipeline.training.metrics_log import RunLog
from pipeline.training.module import StepOutput
from pipeline.training.optimizers import LearningRates, schedule_factor
from pipeline.training.state import RunState
from pipeline.training.steps import choose_step
from pipeline.training.stop import StopRequest, sigterm_sets

log = logging.getLogger(__name__)

Ending = Literal["finished", "stopped early", "interrupted"]


class Validation(Protocol):
    """Evaluates the model as it is; given from above, for training knows no metrics."""

    def __call__(self) -> dict[str, Any]:
        """Metrics of the valid split, the same on every worker. Collective."""
        ...


@dataclass(frozen=True)
class Criterion:
    """The metric that early stopping and the best checkpoint go by."""

    value: Callable[[dict[str, Any]], float | None]
    is_better: Callable[[float, float | None], bool]


class Trainer:
    """Trains from the state's position to the end of the run.

    A step is: next batch, forward, backward, optimizers. After it, in this order and only where due: log line,
    validation, checkpoint. A checkpoint therefore holds the validation of its own step.
    """

    def __init__(
        self,
        experiment: Experiment,
        state: RunState,
        reader: Reader,
        settings: dict[str, Any],
        run_log: RunLog | None,
        validation: Validation | None = None,
        criterion: Criterion | None = None,
    ) -> None:
        """Wires a run.

        Args:
            experiment: of the run.
            state: fresh, or restored.
            reader: of the train split.
            settings: what checkpoints say of the run, see `run_settings`.
            run_log: on the first worker, None on the others.
            validation: run when due.
            criterion: of early stopping.
        """
        self._settings = settings
        self._training = experiment.training
        self._checkpoint = experiment.checkpoint
        self._folder = experiment.checkpoint_folder
        self._state = state
        self._progress = state.progress
        self._worker = state.worker
        self._reader = reader
        self._run_log = run_log
        self._validation = validation
        self._criterion = criterion
        self.total_steps = total_steps(experiment, reader)
        self._rates = LearningRates(state.model.optimizer, self._training.schedule, self.total_steps)
        self._step = choose_step(self._training.loop, state.model, self._worker.device)
        self._stop = StopRequest(self._worker)
        self._saved_step = state.progress.step if state.progress.step else None
        self._logged_at = time.perf_counter()
        self._logged_step = state.progress.step

    def train(self) -> Ending:
        """Trains to the end, to an early stop, or to a SIGTERM; whichever it is, the last step is saved.

        Raises:
            UserError: training diverged, or the last step could not be saved.
        """
        self._state.model.module.train()
        ending = self._ending()
        with sigterm_sets(self._worker.stop):
            while ending is None:
                batches = prefetch(self._reader.epoch(self._progress.position), self._prepare)
                with closing(batches):
                    ending = self._train_on(batches)
        if self._saved_step != self._progress.step and not self._save():
            raise UserError(
                f"Training ended at step {self._progress.step}, but its checkpoint could not be saved (see above). "
                f"Make room in {self._folder} and train again: it goes on from the checkpoint before."
            )
        return ending

    def _train_on(self, batches: Iterator[Batch]) -> Ending | None:
        """Trains on an epoch's batches; None when the run goes on with the next epoch."""
        while True:
            self._rates.set(self._progress.step)
            self._stop.ask()
            output = self._step(batches)
            is_told_to_stop = self._stop.answer()
            if output is None:
                return self._ending()
            self._after_step(output)
            ending = self._ending() or ("interrupted" if is_told_to_stop else None)
            if ending is not None:
                return ending

    def _after_step(self, output: StepOutput) -> None:
        progress = self._progress
        progress.step += 1
        progress.position = output.position
        self._state.window.update(output)
        is_epoch_end = progress.position.step == 0
        if self._run_log:
            self._run_log.step()
        if is_due(progress.step, self._training.log_every_steps, is_epoch_end):
            self._log()
        is_last = progress.step >= self.total_steps
        is_best, best_before = False, progress.best_step
        if self._validation and (is_last or is_due(progress.step, self._training.validate_every_steps, is_epoch_end)):
            is_best = self._validate(self._validation)
        if is_best or is_due(progress.step, self._checkpoint.every_steps, is_epoch_end):
            is_saved = self._save()
            if is_best and not is_saved:
                progress.best_step = best_before  # the best one that can be loaded

    def _ending(self) -> Ending | None:
        stopping = self._training.early_stopping
        if stopping and self._progress.stale_validations >= stopping.patience:
            return "stopped early"
        return "finished" if self._progress.step >= self.total_steps else None

    def _log(self) -> None:
        report, diagnostics = self._state.window.report()
        now, steps = time.perf_counter(), self._progress.step - self._logged_step
        speed = steps * self._training.global_batch_size / (now - self._logged_at)
        self._logged_at, self._logged_step = now, self._progress.step
        if self._run_log is None:
            return
        step = self._progress.step
        values = {
            "epoch": self._progress.position.epoch,
            "tasks": report,
            "learning_rate_factor": schedule_factor(self._training.schedule, step - 1, self.total_steps),
            "samples_per_second": round(speed),
            "diagnostics": diagnostics,
        }
        self._run_log.record("train", step, values)
        tasks = "  ".join(f"{name} {numbers(measured)}" for name, measured in report.items())
        self._run_log.say(f"step {step}/{self.total_steps}  {tasks}  {speed:,.0f} samples/s")

    def _validate(self, validation: Validation) -> bool:
        """Validates; whether this is the best so far."""
        start = time.perf_counter()
        with self._step.paused():
            self._state.model.module.eval()
            evaluation = validation()
            self._state.model.module.train()
        progress, value, is_best = self._progress, None, False
        if self._criterion:
            value = self._criterion.value(evaluation)
            is_best = value is not None and self._criterion.is_better(value, progress.best)
            if is_best:
                progress.best, progress.best_step, progress.stale_validations = value, progress.step, 0
            elif value is not None:  # an undefined metric says nothing
                progress.stale_validations += 1
        if self._run_log:
            self._run_log.record("valid", progress.step, evaluation)
            tasks = "  ".join(
                f"{name} {numbers({m: v for m, v in task.items() if m in ('auc', 'log_loss', 'rmse')})}"
                for name, task in evaluation["tasks"].items()
            )
            self._run_log.say(f"step {progress.step} validation  {tasks}{'  (best so far)' if is_best else ''}")
        self._logged_at += time.perf_counter() - start  # no training time
        return is_best

    def _save(self) -> bool:
        """Saves; a failure costs this checkpoint and not the run. Whether it was saved."""
        self._state.window.check_finite()  # before good checkpoints are pruned for the sake of a useless one
        start = time.perf_counter()
        try:
            saved = self._state.save(self._folder, self._settings)
        except SaveFailedError as error:
            if self._worker.is_first:
                log.warning("The checkpoint of step %d could not be saved: %s", self._progress.step, error)
            return False
        self._saved_step = self._progress.step
        if self._run_log:
            self._prune()
            self._run_log.say(f"step {saved.step} saved in {time.perf_counter() - start:.1f} s: {saved.uri}")
        self._logged_at += time.perf_counter() - start
        return True

    def _prune(self) -> None:
        try:
            prune(self._folder, self._checkpoint.keep_last, self._checkpoint.keep_every, self._progress.best_step)
        except OSError as error:
            log.warning("Old checkpoints in %s could not be deleted: %s", self._folder, error)

    def _prepare(self, batch: Batch) -> Batch:
        return batch.pin_memory() if self._worker.device.type == "cuda" else batch


def total_steps(experiment: Experiment, reader: Reader) -> int:
    """Steps of the whole run: its epochs, or fewer by `max_steps`."""
    steps = experiment.training.epochs * reader.steps_per_epoch
    return min(steps, experiment.training.max_steps or steps)


def is_due(step: int, every: int | None, is_epoch_end: bool) -> bool:
    """Whether something that is done every so many steps, or at the end of every epoch, is due after this one."""
    return is_epoch_end if every is None else step % every == 0


def numbers(values: dict[str, float | None]) -> str:
    return " ".join(f"{name} {'-' if value is None else f'{value:.4f}'}" for name, value in values.items())
