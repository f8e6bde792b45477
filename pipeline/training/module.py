"""One training step's forward: embedding, dense part, losses."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.build import DenseModel
from models.embedding import SharedEmbedding
from models.inputs import Embedded, TargetTask
from models.losses import combine, task_losses
from pipeline.loading.batch import Batch, Position


@dataclass
class StepOutput:
    """What a step tells, detached."""

    losses: Tensor  # (tasks,), this worker's share: the mean over workers is the mean over the global batch
    scores: Tensor  # (batch, tasks)
    labels: Tensor  # (batch, tasks)
    weights: Tensor  # (batch,)
    scenarios: Tensor  # (batch, levels)
    position: Position  # that of the batch


class TrainingModule(nn.Module):
    """Batch in, loss and output out. Only `embedding` is sharded; `dense` is replicated."""

    def __init__(
        self, embedding: SharedEmbedding, dense: DenseModel, tasks: tuple[TargetTask, ...], bf16: bool
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.dense = DenseStep(dense, tasks, bf16)

    def forward(self, batch: Batch) -> tuple[Tensor, StepOutput]:
        embedded = self.embedding(batch.ids, batch.sequences, batch.numerics)
        return self.dense(embedded, batch)


class DenseStep(nn.Module):
    """The dense part and the losses, kept whole when a pipeline traces the way to the sharded embedding."""

    def __init__(self, model: DenseModel, tasks: tuple[TargetTask, ...], bf16: bool) -> None:
        super().__init__()
        self.model = model
        self._tasks = tasks
        self._binary = [task.kind == "binary" for task in tasks]
        self._bf16 = bf16

    def forward(self, embedded: Embedded, batch: Batch) -> tuple[Tensor, StepOutput]:
        with torch.autocast(batch.weights.device.type, torch.bfloat16, enabled=self._bf16):
            predictions, trunk = self.model(embedded, batch.scenarios)
        losses = task_losses(predictions, batch.labels, batch.weights, batch.weight_total, self._tasks)
        combined = combine(losses, trunk.auxiliary, self._tasks)
        output = StepOutput(
            losses=combined.tasks,
            scores=predictions.scores(self._binary).detach(),
            labels=batch.labels,
            weights=batch.weights,
            scenarios=batch.scenarios,
            position=batch.position,
        )
        return combined.total, output
