"""One training step's forward: embedding, dense part, losses."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.build import build_dense, build_rule
from models.config import ModelConfig
from models.embedding import SharedEmbedding
from models.inputs import Embedded, ModelInputs
from models.losses import task_losses, weighted_task_losses
from models.objective import Objective
from models.task_weights import TaskWeights
from models.trunks.base import Context
from pipeline.loading.batch import Batch
from pipeline.loading.position import Position
from pipeline.workers.collective import sum_over_workers


@dataclass
class StepOutput:
    """Output of one step, detached."""

    losses: Tensor  # (tasks,), unweighted, this worker's share: the mean over workers is the global batch's loss
    scores: Tensor  # (batch, tasks)
    labels: Tensor  # (batch, tasks), NaN where a row has no label
    weights: Tensor  # (batch,), 1 for rows of the table, 0 for padding
    fill: Tensor  # scalar: rows of the global batch / its size, below 1 if it has padding
    scenarios: Tensor  # (batch, levels)
    position: Position  # of the batch
    diagnostics: Tensor  # values of the names in DenseStep.diagnostics, this worker's share
    experts: dict[str, Tensor]  # see TrunkOutput
    task_weights: TaskWeights | None = None  # see Batch
    conditionals: Tensor | None = None  # (batch, conditional tasks), see HeadOutput
    deviations: Tensor | None = None  # (batch, tasks), see HeadOutput


class TrainingModule(nn.Module):
    """Computes loss and output of a batch. Only `embedding` is sharded; `dense` is replicated."""

    def __init__(self, embedding: SharedEmbedding, dense: "DenseStep") -> None:
        super().__init__()
        self.embedding = embedding
        self.dense = dense

    def forward(self, batch: Batch) -> tuple[Tensor, StepOutput]:
        embedded = self.embedding(batch.ids, batch.sequences, batch.numerics)
        return self.dense(embedded, batch)


class DenseStep(nn.Module):
    """The dense part and the losses: one module, which a pipeline does not trace into."""

    def __init__(self, config: ModelConfig, inputs: ModelInputs, bf16: bool) -> None:
        super().__init__()
        self.model = build_dense(config, inputs)
        self.objective = Objective(inputs.tasks, config.objective)
        self._rule = build_rule(config, inputs)
        self._bf16 = bf16
        self.diagnostics = (
            *self.model.trunk.diagnostics,
            *self.objective.diagnostics,
            *(self._rule.diagnostics if self._rule else ()),
        )

    def forward(self, embedded: Embedded, batch: Batch) -> tuple[Tensor, StepOutput]:
        rule = self._rule if torch.is_grad_enabled() else None
        start = embedded.cut() if rule else embedded
        context = context_of(batch)
        with torch.autocast(batch.weights.device.type, torch.bfloat16, enabled=self._bf16):
            predictions, trunk = self.model(start, context)
        weights = context.task_weights
        if weights is None:
            losses = task_losses(predictions, batch.labels, batch.weights, batch.weight_total)
            weighted, factors = self.objective(losses)
        else:
            losses = weighted_task_losses(predictions, batch.labels, weights)
            weighted, factors = self.objective(losses, weights.is_present)
        diagnostics = [*trunk.diagnostics.values(), *factors]
        loss = weighted.sum() if trunk.penalty is None else weighted.sum() + trunk.penalty
        if rule:
            gradients, measured = rule(weighted, start.looked_up, context.total)
            diagnostics += measured
            if trunk.penalty is not None:  # belongs to no task, so the rule does not change its gradient
                of_penalty = torch.autograd.grad(
                    trunk.penalty, start.looked_up, retain_graph=True, materialize_grads=True
                )
                gradients = [a + b for a, b in zip(gradients, of_penalty, strict=True)]
            loss = carry(loss, embedded.looked_up, gradients)
        fill = batch.weight_total / batch.rows
        conditionals, deviations = predictions.conditionals(), predictions.deviations()
        output = StepOutput(
            losses=losses.detach(),
            scores=predictions.scores().detach(),
            labels=batch.labels,
            weights=batch.weights,
            fill=fill,
            scenarios=batch.scenarios,
            position=batch.position,
            diagnostics=torch.stack(diagnostics).float() if diagnostics else losses.new_empty(0),
            experts=trunk.experts,
            task_weights=weights,
            conditionals=None if conditionals is None else conditionals.detach(),
            deviations=None if deviations is None else deviations.detach(),
        )
        # Losses are means over rows. A batch with few rows, such as the last one of an epoch, must not count as a full
        # one: the large gradients of its rows would lower the learning rate of Adagrad for these ids for ever.
        return loss * fill, output


def context_of(batch: Batch) -> Context:
    """What a trunk knows about the rows. Collective if rows have weights for tasks, which must be added up."""
    weights = None if batch.task_weights is None else TaskWeights.of(batch.task_weights, sum_over_workers)
    return Context(
        batch.scenarios,
        batch.weights if weights is None else weights.rows,
        batch.weight_total if weights is None else weights.row_total,
        batch.noise_keys,
        sum_over_workers,
        task_weights=weights,
    )


def carry(loss: Tensor, tensors: list[Tensor], gradients: list[Tensor]) -> Tensor:
    """The same loss, whose backward pass also adds these gradients to these tensors."""
    carried = torch.stack([(tensor * gradient).sum() for tensor, gradient in zip(tensors, gradients, strict=True)])
    return loss + (carried - carried.detach()).sum()
