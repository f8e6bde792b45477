"""The trainer: one loop for every launcher and every device."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from pipeline.checkpoint.format import Checkpoint, check_claim, claim, prune
from pipeline.checkpoint.progress import Ending, SavedSmearing
from pipeline.checkpoint.saving import Saver
from pipeline.checkpoint.state_document import RunSettings
from pipeline.config.experiment import Experiment
from pipeline.errors import DivergedError, UserError
from pipeline.job_progress import JobProgress, SavedCheckpoint
from pipeline.loading.batch import Batch
from pipeline.loading.prefetch import prefetch
from pipeline.loading.reader import Reader
from pipeline.log_records import log_fields
from pipeline.metrics.formatting import format_values
from pipeline.metrics.registry import METRICS
from pipeline.sharding.module import StepOutput
from pipeline.sharding.optimizers import LearningRates, schedule_factor
from pipeline.training.divergence import advice
from pipeline.training.metrics_log import RunLog
from pipeline.training.state import RunState
from pipeline.training.steps import choose_step
from pipeline.workers.stop import Stop, on_sigterm
from pipeline.workers.stop_request import StopRequest

log = logging.getLogger(__name__)


class Validation(Protocol):
    """Evaluates the current model. The caller provides it, because this module does not import evaluation."""

    def __call__(self) -> dict[str, Any]:
        """Metrics of the valid split, with the key `smearing`, the same on every worker. Collective."""
        ...


@dataclass(frozen=True)
class Criterion:
    """The metric that early stopping and the choice of the best checkpoint use."""

    value: Callable[[dict[str, Any]], float | None]
    is_better: Callable[[float, float | None], bool]
    describe_undefined: Callable[[dict[str, Any]], str]
    """Why a validation has no value, and what to do."""


class Trainer:
    """Trains from the state's position to the end of its window.

    A step is: next batch, forward, backward, optimizers. After it, in this order and only if due: log line,
    validation, checkpoint. A checkpoint therefore includes the result of its own step's validation.
    """

    def __init__(
        self,
        experiment: Experiment,
        state: RunState,
        settings: RunSettings,
        run_log: RunLog | None,
        validation: Validation | None = None,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares training. Collective.

        Args:
            experiment: of the run.
            state: new, or restored.
            settings: of the run, for its checkpoints, see `run_settings`.
            run_log: on the first worker, None on the others.
            validation: called when due.
            criterion: compares validations; None without early stopping.
        """
        self._settings = settings
        self._experiment = experiment
        self._training = experiment.training
        self._checkpoint = experiment.checkpoint
        self._folder = experiment.checkpoint_folder
        self._state = state
        self._progress = state.progress
        self._worker = state.worker
        self._run_log = run_log
        self._validation = validation
        self._criterion = criterion
        self._has_warned = False
        self._finite_step = state.progress.step  # the last step whose state was checked
        self._rates = LearningRates(state.model.optimizer, self._training.schedule)
        self._step = choose_step(self._training.loop, state.model, self._worker.device)
        self._stop = StopRequest(self._worker)
        token = self._worker.on_first(lambda: claim(experiment.folder))
        check = partial(check_claim, experiment.folder, token)
        self._saver = Saver(self._folder, self._worker, self._progress, self._checkpoint.background, check)
        self._logged_at = time.perf_counter()
        self._logged_step = state.progress.step
        self._waited_s = 0.0  # for batches, since the last log line
        self._began_at, self._began_step = self._logged_at, self._logged_step

    def train(self, reader: Reader) -> Ending:
        """Trains to the end of the window, to an early stop, or to a SIGTERM. The last step is saved in each case.

        Args:
            reader: of the window's partitions.

        Raises:
            UserError: training diverged, or the last step could not be saved.
        """
        self._state.model.module.train()
        with on_sigterm(self._worker.stop.request), closing(self._saver):
            try:
                ending = self._train_and_save(reader)
            except DivergedError as error:
                raise self._with_checkpoint_to_resume(error) from error
        self._step.forget()
        return ending

    def _train_and_save(self, reader: Reader) -> Ending:
        ending = self._progress.ending(self._training)
        while ending is None:
            batches = prefetch(reader.epoch(self._progress.position), self._prepare)
            with closing(batches):
                ending = self._train_on(self._timed(batches))
        self._save_end()
        return ending

    def _train_on(self, batches: Iterator[Batch]) -> Ending | None:
        """Trains on an epoch's batches; returns None if the run continues with the next epoch."""
        total = self._progress.window.total_steps(self._training)
        while True:
            self._worker.heartbeat.beat(f"training step {self._progress.step + 1}")
            self._rates.set(self._progress.step_in_window, total)
            self._stop.start()
            output = self._step(batches)
            stop = self._stop.wait()
            if output is None:
                return self._progress.ending(self._training)
            is_saved = self._after_step(output)
            ending = self._progress.ending(self._training)
            if ending is not None:
                return ending
            if stop >= Stop.AFTER_STEP or (stop == Stop.AT_SAVE and is_saved):
                self._worker.stop.is_obeyed = True
                return "interrupted"

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; counts the time that the step waits for them."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self._waited_s += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def _after_step(self, output: StepOutput) -> bool:
        """Counts, logs, validates and saves what is due; returns whether a checkpoint of this step was begun."""
        progress = self._progress
        progress.step += 1
        log_fields.step = progress.step
        progress.position = output.position
        self._state.running_metrics.update(output)
        is_epoch_end = progress.position.step == 0
        if self._run_log:
            self._run_log.step()
        if is_due(progress.step, self._training.log_every_steps, is_epoch_end):
            self._log()
        is_last = progress.step_in_window >= progress.window.total_steps(self._training)
        is_validated = is_last or is_due(progress.step, self._training.validate_every_steps, is_epoch_end)
        if is_validated:
            self._check_finite()  # before the predictions of a useless model are made
            self._saver.settle()  # so that the best step so far is known
        is_best = self._validate(self._validation) if self._validation and is_validated else False
        is_saved = is_best or is_due(progress.step, self._checkpoint.every_steps, is_epoch_end)
        if is_saved:
            self._save()
        return is_saved

    def _log(self) -> None:
        report, diagnostics = self._state.running_metrics.report()
        now, steps = time.perf_counter(), self._progress.step - self._logged_step
        speed = steps * self._training.global_batch_size / (now - self._logged_at)
        data_wait = self._waited_s / (now - self._logged_at)
        self._logged_at, self._logged_step, self._waited_s = now, self._progress.step, 0.0
        if self._run_log is None:
            return
        step, window = self._progress.step, self._progress.window
        total = window.total_steps(self._training)
        factor = schedule_factor(self._training.schedule, self._progress.step_in_window - 1, total)
        values = {
            "epoch": self._progress.position.epoch,
            "tasks": report,
            "learning_rate_factor": factor,
            "samples_per_second": round(speed),
            "diagnostics": diagnostics,
        }
        self._run_log.record("train", step, values)
        tasks = "  ".join(f"{name} {format_values(measured)}" for name, measured in report.items())
        last = window.first_step + total
        shown = JobProgress(
            stage="training",
            step=step,
            total_steps=last,
            epoch=self._progress.position.epoch,
            samples_per_second=speed,
            data_wait=data_wait,
            eta_s=(last - step) * (now - self._began_at) / (step - self._began_step),
            metrics=report,
        )
        self._run_log.show(f"step {step}/{last}  {tasks}  {speed:,.0f} samples/s", shown)

    def _validate(self, validation: Validation) -> bool:
        """Validates; returns whether the result is the best so far."""
        start = time.perf_counter()
        self._worker.heartbeat.beat(f"the validation of step {self._progress.step}")
        with self._step.paused():
            self._state.model.module.eval()
            evaluation = validation()
            self._state.model.module.train()
        progress, is_best = self._progress, False
        progress.smearing = SavedSmearing(progress.step, evaluation.pop("smearing"))
        if self._criterion:
            value = self._criterion.value(evaluation)
            if value is None and not self._has_warned and self._worker.is_first:
                self._has_warned = True
                log.warning("%s", self._criterion.describe_undefined(evaluation))
            if value is not None:  # an undefined metric is neither better nor worse
                is_best = self._criterion.is_better(value, progress.best)
                progress.stale_validations = 0 if is_best else progress.stale_validations + 1
                if is_best:
                    self._saver.new_best(value)
        if self._run_log:
            self._run_log.record("valid", progress.step, evaluation)
            values = {
                task: {metric: value for metric, value in of.items() if self._is_shown(task, metric)}
                for task, of in evaluation["tasks"].items()
            }
            tasks = "  ".join(f"{task} {format_values(of)}" for task, of in values.items())
            self._run_log.show(
                f"step {progress.step} validation  {tasks}{'  (best so far)' if is_best else ''}",
                JobProgress(step=progress.step, validation=values, validation_step=progress.step),
            )
        self._logged_at += time.perf_counter() - start  # no training time
        return is_best

    def _is_shown(self, task: str, metric: str) -> bool:
        """Whether the log line of a validation has a metric: a usual one, or the one that training stops by."""
        stopping = self._training.early_stopping
        is_usual = metric in METRICS and METRICS[metric].in_log_lines
        return is_usual or (stopping is not None and stopping.metric == f"{task}.{metric}")

    def _save(self) -> None:
        """Starts to save. If the save fails, this checkpoint is missing and the run continues."""
        self._check_finite()  # before good checkpoints are pruned for a useless one
        start, step = time.perf_counter(), self._progress.step
        self._worker.heartbeat.beat(f"the checkpoint of step {step}")
        self._saver.settle()
        best_step = self._progress.best_step

        def done(saved: Checkpoint, seconds: float) -> None:
            self._worker.on_saved()
            self._prune(best_step)
            assert self._run_log is not None
            checkpoint = SavedCheckpoint(step=saved.step, uri=saved.uri, time=time.time())
            text = f"step {saved.step} saved in {seconds:.1f} s: {saved.uri}"
            self._run_log.show(text, JobProgress(checkpoint=checkpoint))

        if self._run_log:
            self._run_log.flush()  # lines up to this step must be written before the checkpoint is complete
        self._state.save(self._saver, self._settings, done)
        self._logged_at += time.perf_counter() - start

    def _check_finite(self) -> None:
        if self._finite_step != self._progress.step:
            self._state.check_finite()
            self._finite_step = self._progress.step

    def _with_checkpoint_to_resume(self, error: DivergedError) -> DivergedError:
        """The same error, with the checkpoint to resume from. Collective, as the error is."""
        self._saver.settle()
        steps = self._worker.gather(self._state.running_metrics.finite_steps())

        def with_checkpoint() -> DivergedError:
            assert steps is not None
            last_finite = self._logged_step + min(steps)
            return DivergedError(error.fact, advice(self._experiment, last_finite, self._began_step))

        return self._worker.on_first(with_checkpoint)

    def _save_end(self) -> None:
        """Saves the last step unless it has been saved; if its save has failed, tries once more."""
        self._saver.settle()
        if self._saver.saved_step != self._progress.step:
            self._saver.restore_failed_best()
            self._save()
            self._saver.settle()
        if self._saver.saved_step != self._progress.step:
            raise UserError(
                f"Training ended at step {self._progress.step}, but its checkpoint could not be saved (see above). "
                f"Free some space in {self._folder} and train again: the run resumes from the previous checkpoint."
            )

    def _prune(self, best_step: int | None) -> None:
        try:
            prune(self._folder, self._checkpoint.keep_last, self._checkpoint.keep_every, best_step)
        except OSError as error:
            log.warning("Old checkpoints in %s could not be deleted: %s", self._folder, error)

    def _prepare(self, batch: Batch) -> Batch:
        return batch.pin_memory() if self._worker.device.type == "cuda" else batch


def is_due(step: int, every: int | None, is_epoch_end: bool) -> bool:
    """Whether something done every `every` steps (None: at the end of every epoch) is due after this step."""
    return is_epoch_end if every is None else step % every == 0
