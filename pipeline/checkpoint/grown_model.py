"""Loads a checkpoint into a model with more scenarios or tasks: new parts stay as initialised, the rest is kept.

Counters that the trunk names in `Trunk.restarted` start again.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

from models.growth import Carried, Labels, carry_over, state_labels
from models.labels import axis_labels
from pipeline.checkpoint.checks import grown_tables
from pipeline.checkpoint.format import Checkpoint
from pipeline.checkpoint.state_document import RunSettings
from pipeline.checkpoint.tensors import load_tensors
from pipeline.config.experiment import Experiment
from pipeline.errors import UserError
from pipeline.sharding.model_inputs import model_inputs
from pipeline.sharding.module import DenseStep
from pipeline.workers.worker import Worker

DENSE = "dense."  # prefix of the dense part's names in the model's state


@dataclass(frozen=True)
class DensePart:
    """Names, sizes and labels of a dense part."""

    tensors: dict[str, Tensor]
    labels: Labels
    restarted: frozenset[str]  # see `Trunk.restarted`


def dense_part(experiment: Experiment, table_rows: dict[str, int]) -> DensePart:
    """The newly initialised dense part of an experiment's model."""
    with torch.random.fork_rng(devices=[]):
        step = DenseStep(experiment.model, model_inputs(experiment, table_rows), bf16=False)
    tensors = {DENSE + name: tensor for name, tensor in step.state_dict().items()}
    labels = {DENSE + name: axes for name, axes in axis_labels(step).items()}
    return DensePart(tensors, labels, frozenset(f"{DENSE}model.trunk.{name}" for name in step.model.trunk.restarted))


def load_grown(
    checkpoint: Checkpoint, tensors: dict[str, Any], saved: RunSettings, run: RunSettings, worker: Worker
) -> list[str]:
    """Loads a checkpoint into the state of a larger model, in place. Collective.

    Args:
        checkpoint: the checkpoint.
        tensors: state of the newly initialised model and its optimizer.
        saved: settings of the run that made the checkpoint, from its `state.json`.
        run: settings of the current run.
        worker: this one.

    Returns:
        One line per tensor that is new or larger or that starts again. Everything else is kept, the moments of the
        optimizer included.

    Raises:
        UserError: the checkpoint has something that does not fit into the model.
    """
    before = dense_part(saved.experiment, saved.table.table_rows)
    now = dense_part(run.experiment, run.table.table_rows)
    weights, moments = tensors["model"], tensors["optimizer"]["state"]
    old_weights = {
        name: like(value, before.tensors[name]) if name in before.tensors else value
        for name, value in weights.items()
        if name in before.tensors or isinstance(value, ShardedTensor)
    }
    old_moments = {
        owner: {
            kind: like(value, before.tensors[owner]) if owner in before.tensors and value.dim() else copy_of(value)
            for kind, value in state.items()
        }
        for owner, state in moments.items()
        if owner in before.tensors or any(isinstance(value, ShardedTensor) for value in state.values())
    }
    rows = grown_tables(saved, run)
    load_tensors(checkpoint, {"model": old_weights, "optimizer": {"state": old_moments}}, worker, rows)
    try:
        kept, current = (dense(part, but=now.restarted) for part in (old_weights, weights))
        carried = carry_over(kept, before.labels, current, now.labels)
        flat_old, flat_new = flat(old_moments), flat(moments)
        carry_over(
            flat_old,
            state_labels(flat_old, before.tensors, before.labels),
            flat_new,
            state_labels(flat_new, now.tensors, now.labels),
        )
    except ValueError as error:
        raise UserError(f"The checkpoint {checkpoint.uri} cannot be loaded into this model: {error}.") from error
    return [*carried_in_words(carried), *(f"{name}: starts again" for name in sorted(now.restarted))]


def like(value: Tensor, old: Tensor) -> Tensor:
    """An empty tensor of the old size, to load into."""
    return torch.empty(old.shape, dtype=value.dtype)


def copy_of(value: Any) -> Any:
    """An empty tensor for a number such as Adam's step, to load into; sharded state itself is loaded in place."""
    return value if isinstance(value, ShardedTensor) else torch.empty_like(value, device="cpu")


def dense(weights: dict[str, Any], but: frozenset[str]) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if not isinstance(value, ShardedTensor) and name not in but}


def flat(moments: dict[str, dict[str, Any]]) -> dict[str, Tensor]:
    """The dense optimizer's tensors as ``PARAMETER.KIND``."""
    return {
        f"{owner}.{kind}": value
        for owner, state in moments.items()
        for kind, value in state.items()
        if torch.is_tensor(value) and not isinstance(value, ShardedTensor)
    }


def carried_in_words(carried: Carried) -> list[str]:
    """One line per tensor that is larger or new."""
    larger = [f"{name}: {', '.join(labels)} added" for name, labels in carried.grown.items()]
    return [*larger, *(f"{name}: new" for name in carried.new)]
