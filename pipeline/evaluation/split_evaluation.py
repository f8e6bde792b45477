"""Evaluating a split on all workers together."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from pipeline.config.conditional_tasks import conditional_tasks, with_conditional_tasks
from pipeline.config.experiment import Experiment
from pipeline.evaluation.expert_use import ExpertUse
from pipeline.evaluation.log_unit import Factors
from pipeline.evaluation.predictions import PredictedBatch, predict
from pipeline.evaluation.reliability import reliability_of_tasks
from pipeline.evaluation.split_metrics import Predictions, evaluate, smearing_of
from pipeline.loading.reader import Reader
from pipeline.progress_bar import ProgressBar
from pipeline.sharding.model_inputs import batch_columns, model_inputs
from pipeline.table.manifest import Manifest
from pipeline.table.target_quantiles import load_target_quantiles
from pipeline.workers.worker import Worker


def split_reader(
    experiment: Experiment, table: str, manifest: Manifest, split: str, worker: Worker, keys: list[str]
) -> Reader:
    """A reader of a whole split in the order of the table, with key columns and the columns that targets depend
    on."""
    inputs = model_inputs(experiment, manifest.table_rows)
    columns = batch_columns(experiment, inputs, tuple(keys), with_references=True)
    return Reader(
        table,
        manifest,
        split,
        columns,
        global_batch_size=experiment.evaluation.batch_size,
        rank=worker.rank,
        workers=worker.workers,
    )


class SplitEvaluation:
    """Metrics of one split, exact over all rows of all workers."""

    def __init__(
        self, experiment: Experiment, module: nn.Module, table: str, manifest: Manifest, split: str, worker: Worker
    ) -> None:
        self._experiment = experiment
        self._tasks = with_conditional_tasks(experiment.tasks)
        self._module = module
        self._worker = worker
        self._quantiles = load_target_quantiles(experiment.table_experiment, table)
        self._group = experiment.evaluation.group
        self._split, self._rows = split, manifest.rows(split)
        keys = [self._group] if self._group else []
        self._reader = split_reader(experiment, table, manifest, split, worker, keys)

    def __call__(self) -> dict[str, Any]:
        """The evaluation, see `evaluate`, the same on every worker. Smearing factors are estimated on it. Collective.

        Its tasks are those of the experiment and the conditional ones. `given` has, for each conditional task, the
        task whose positive rows it is measured on.

        Raises:
            UserError: predictions are not finite; raised on every worker.
        """
        gathered = self._gather([batch.predictions for batch in self._batches()])
        return self._worker.on_first(lambda: self._evaluate(_joined(gathered), None))

    def smearing(self) -> dict[str, dict[str, float]]:
        """The smearing factors of each task that needs them, estimated on the split. Collective."""
        gathered = self._gather([batch.predictions for batch in self._batches()])
        tasks, scenarios = self._experiment.tasks, self._experiment.scenarios
        quantiles = self._quantiles
        return self._worker.on_first(
            lambda: smearing_of(_joined(gathered).valid().canonical(), tasks, scenarios, quantiles)
        )

    def in_detail(self, smearing: Mapping[str, Factors]) -> dict[str, Any]:
        """The evaluation with two more keys, which a validation leaves out to save time and memory. Collective.

        `reliability` holds the curves of `reliability_of_tasks`, `experts` the means of `ExpertUse.total`.

        Args:
            smearing: factors of each task that needs them.

        Raises:
            UserError: predictions are not finite; raised on every worker.
        """
        experiment = self._experiment
        names = [task.name for task in experiment.tasks]
        use = ExpertUse(names, experiment.scenarios, experiment.has_weights)
        parts = []
        with ProgressBar(f"evaluation of {self._split}", self._rows, is_shown=self._worker.is_first) as progress:
            for batch in self._batches():
                parts.append(batch.predictions)
                use.add(batch.output)
                progress.add(self._experiment.evaluation.batch_size)
        gathered, experts = self._gather(parts), use.total(self._worker)

        def detailed() -> dict[str, Any]:
            rows = _joined(gathered)
            evaluation = self._evaluate(rows, smearing)
            curves = reliability_of_tasks(rows, self._tasks, self._experiment.scenarios)
            return {**evaluation, "reliability": curves, "experts": experts}

        return self._worker.on_first(detailed)

    def _batches(self) -> Iterator[PredictedBatch]:
        conditional = conditional_tasks(self._experiment.tasks)
        batches = predict(self._module, self._reader, self._worker.device, conditional, self._group)
        for number, batch in enumerate(batches):
            self._worker.heartbeat.beat(f"evaluation, batch {number}")
            yield batch

    def _gather(self, parts: list[Predictions]) -> list[Predictions] | None:
        return self._worker.gather(Predictions.concatenate(parts))

    def _evaluate(self, rows: Predictions, smearing: Mapping[str, Factors] | None) -> dict[str, Any]:
        tasks = self._experiment.tasks
        given = {conditional.config.name: tasks[conditional.after].name for conditional in conditional_tasks(tasks)}
        found = evaluate(rows, self._tasks, self._experiment.scenarios, smearing, self._quantiles)
        return {**found, "given": given}


def _joined(gathered: list[Predictions] | None) -> Predictions:
    assert gathered is not None
    return Predictions.concatenate(gathered)
