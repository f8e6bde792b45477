"""Training that diverges: finds numbers that are not finite, and the checkpoint to continue from."""

import shlex
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

from pipeline.checkpoint.format import START_OVER_HINT, complete_checkpoints
from pipeline.config.experiment import Experiment
from pipeline.config.training import TrainingConfig
from pipeline.errors import DivergedError
from pipeline.workers.worker import Worker

MARGIN = 10
"""Steps before a failure whose checkpoints are avoided: weights may grow for some steps before they are not finite."""
FACTOR = 0.1
"""On the learning rates, in the advice."""
NAMED = 3  # parts of a model that a message names


def check_state(state: dict[str, Any], step: int, worker: Worker) -> None:
    """Checks the state that a checkpoint of this step would save. Collective.

    Args:
        state: sharded or replicated tensors: `model`, a state dict, and `optimizer`, moments by name of the weight.
        step: steps trained so far.
        worker: this one.

    Raises:
        DivergedError: on every worker, if any of them has a number that is not finite.
    """
    parts = list(dict.fromkeys(part_of(*path) for path in not_finite(state)))
    if not worker.sum(torch.tensor(len(parts))):
        return
    gathered = worker.gather(parts)

    def fail() -> None:
        every = list(dict.fromkeys(part for of_worker in gathered or () for part in of_worker))
        rest = f" and {len(every) - NAMED} others" if len(every) > NAMED else ""
        raise DivergedError(
            f"After step {step}, numbers in {', '.join(every[:NAMED])}{rest} are not finite: training has diverged. "
            "This step is not saved.",
            "Train with a lower learning rate.",
        )

    worker.on_first(fail)


def not_finite(state: dict[str, Any]) -> list[tuple[str, ...]]:
    """Paths of this worker's tensors with a number that is not finite. Waits for the device once."""
    found: dict[torch.device, dict[tuple[str, ...], Tensor]] = {}
    for path, tensor in _tensors(state):
        if tensor.is_floating_point() and tensor.numel():
            extremes = torch.stack(tensor.detach().aminmax())  # NaN if there is one; needs no memory, unlike isfinite
            found.setdefault(tensor.device, {})[path] = extremes.isfinite().all()
    wrong = []
    for of_device in found.values():
        flags = torch.stack(list(of_device.values())).tolist()
        wrong += [path for path, is_finite in zip(of_device, flags, strict=True) if not is_finite]
    return wrong


def _tensors(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _tensors(part, (*path, str(name)))
    elif isinstance(value, ShardedTensor):
        for shard in value.local_shards():
            yield path, shard.tensor
    elif torch.is_tensor(value):
        yield path, value


def part_of(kind: str, *path: str) -> str:
    """The part of a model that a tensor belongs to, in words, by its path in `check_state`."""
    weight = path[0] if kind == "model" else path[1]
    names = weight.split(".")
    is_table = names[0] == "embedding"
    part = f"the embedding table {names[-2]}" if is_table else f"the {names[2] if names[1] == 'model' else names[1]}"
    return part if kind == "model" else f"the optimizer's state of {part}"


def advice(experiment: Experiment, last_finite: int, began: int) -> str:
    """What to do after training has diverged, for the checkpoints that the run has now.

    Args:
        experiment: of the run.
        last_finite: the last step whose losses were finite.
        began: the step from which training resumed, or 0.
    """
    training, saved = experiment.training, complete_checkpoints(experiment.checkpoint_folder)
    resumed = [checkpoint for checkpoint in saved if checkpoint.step == began]
    is_retry = any(_is_slower(training, checkpoint.state().experiment.training) for checkpoint in resumed)
    step = step_to_resume([checkpoint.step for checkpoint in saved], last_finite, began, is_retry)
    sparse, dense = training.sparse_optimizer.lr * FACTOR, training.dense_optimizer.lr * FACTOR
    rates = f"training.sparse_optimizer.lr={sparse:.3g} training.dense_optimizer.lr={dense:.3g}"
    other = "training.schedule.warmup_steps or training.clip_norm may help too"
    if step is None:
        return (
            f"No checkpoint is early enough to continue from, so start over: {START_OVER_HINT}; {other}. With lower "
            f"learning rates: {rates}"
        )
    (chosen,) = [checkpoint for checkpoint in saved if checkpoint.step == step]
    return (
        f"Resume from an earlier checkpoint with lower learning rates; {other}; if training diverges again at once, "
        f"start over: {START_OVER_HINT}. To resume, with your other flags and keys: manygate train EXPERIMENT --resume "
        f"{shlex.quote(chosen.uri)} {rates}"
    )


def step_to_resume(steps: list[int], last_finite: int, began: int, is_retry: bool) -> int | None:
    """The step of the checkpoint to resume from after training has diverged; None to start over.

    The loss of at least one step after the checkpoint was finite. A checkpoint of `MARGIN` steps before is preferred,
    and another one than training has resumed from shortly before.

    Args:
        steps: of the checkpoints, ascending.
        last_finite: the last step whose losses were finite.
        began: the step from which training resumed, or 0.
        is_retry: whether it resumed with lower learning rates than before: then that checkpoint is of no use.
    """
    usable = [step for step in steps if step < last_finite]
    others = [step for step in usable if step < began or last_finite - began > MARGIN]
    early = [step for step in others if step <= last_finite - MARGIN]
    chosen = early[-1:] or others[:1] or ([] if is_retry else usable[:1])
    return chosen[0] if chosen else None


def _is_slower(training: TrainingConfig, before: TrainingConfig) -> bool:
    sparse, dense = training.sparse_optimizer.lr, training.dense_optimizer.lr
    return sparse < before.sparse_optimizer.lr or dense < before.dense_optimizer.lr
