"""Evaluating a split on all workers together."""

from typing import Any

from torch import nn

from pipeline.config.experiment import Experiment
from pipeline.evaluation.evaluate import Predictions, evaluate
from pipeline.evaluation.predict import predict
from pipeline.loading.reader import Reader
from pipeline.table.manifest import Manifest
from pipeline.training.inputs import batch_columns, model_inputs
from pipeline.training.worker import Worker


def split_reader(
    experiment: Experiment, table: str, manifest: Manifest, split: str, worker: Worker, keys: list[str]
) -> Reader:
    """A reader of a whole split in the order of the table, with key columns."""
    columns = batch_columns(experiment, model_inputs(experiment, manifest), tuple(keys))
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
        self._module = module
        self._worker = worker
        self._group = experiment.evaluation.group
        keys = [self._group] if self._group else []
        self._reader = split_reader(experiment, table, manifest, split, worker, keys)

    def __call__(self) -> dict[str, Any]:
        """The evaluation, see `evaluate`, the same on every worker. Collective.

        Raises:
            UserError: predictions are not finite; on every worker.
        """
        parts = [batch.predictions for batch in predict(self._module, self._reader, self._worker.device, self._group)]
        gathered = self._worker.gather(Predictions.concatenate(parts))
        return self._worker.on_first(lambda: self._evaluate(gathered))

    def _evaluate(self, gathered: list[Predictions] | None) -> dict[str, Any]:
        assert gathered is not None
        return evaluate(Predictions.concatenate(gathered), self._experiment.tasks, self._experiment.scenarios)
