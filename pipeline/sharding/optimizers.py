"""Optimizers and the learning-rate schedule."""

import math
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward
from torch.optim import Optimizer
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.clipping import GradientClipping, GradientClippingOptimizer
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper

from pipeline.config.optimizer_kinds import DENSE_OPTIMIZERS, SPARSE_OPTIMIZERS
from pipeline.config.training import DenseOptimizerConfig, ScheduleConfig, SparseOptimizerConfig
from pipeline.errors import UserError

SPARSE_CLASSES: dict[str, type[Optimizer]] = {
    "rowwise_adagrad": RowWiseAdagrad,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
}
DENSE_CLASSES: dict[str, type[Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
}


def fuse_sparse_optimizer(
    parameters: Iterable[nn.Parameter], config: SparseOptimizerConfig, device: torch.device
) -> None:
    """Marks embedding parameters to be updated inside backward, before they are sharded.

    A weight decay that the kernels would ignore is left out: `check_weight_decay` refuses it for training, and a run of
    an earlier version that has it can still be evaluated.

    Raises:
        UserError: this device does not have the optimizer.
    """
    known = SPARSE_OPTIMIZERS[config.kind]
    if device.type == "cpu" and not known.on_cpu:
        raise UserError(
            f"training.sparse_optimizer.kind is {config.kind!r}, which exists on CUDA only: on CPU use one of "
            f"{', '.join(kind for kind, optimizer in SPARSE_OPTIMIZERS.items() if optimizer.on_cpu)}."
        )
    arguments: dict[str, Any] = {"lr": config.lr}
    if config.weight_decay and known.has_weight_decay:
        arguments["weight_decay"] = config.weight_decay
    if known.takes_eps:
        arguments["eps"] = config.eps
    _apply_optimizer_in_backward(SPARSE_CLASSES[config.kind], parameters, arguments)


def check_weight_decay(config: SparseOptimizerConfig) -> None:
    """Raises UserError if the kernels of the embedding tables would ignore the weight decay."""
    if config.weight_decay and not SPARSE_OPTIMIZERS[config.kind].has_weight_decay:
        having = ", ".join(kind for kind, optimizer in SPARSE_OPTIMIZERS.items() if optimizer.has_weight_decay)
        raise UserError(
            f"training.sparse_optimizer.weight_decay is {config.weight_decay:g}, but the kernels of {config.kind!r} do "
            f"not apply it to embedding tables: only those of {having} do. Set it to 0, which continues an earlier run "
            "with the same numbers. For the dense part, use training.dense_optimizer.weight_decay."
        )


def dense_optimizer(
    parameters: dict[str, nn.Parameter],
    config: DenseOptimizerConfig,
    clip_norm: float | None,
    spared: Collection[str] = (),
) -> KeyedOptimizer:
    """The optimizer of the replicated parameters, with its state created, and with clipping unless `clip_norm` is None.

    Weight decay does not apply to the parameters in `spared`. The state is created at once, because a checkpoint can
    only be loaded into existing moments; it does not contain the groups of parameters.
    """
    exempt = {parameters[name] for name in spared} if config.weight_decay else set()

    def build(params: list[nn.Parameter]) -> Optimizer:
        options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
        fused_on = DENSE_OPTIMIZERS[config.kind].fused_on
        if fused_on is not None:
            options["fused"] = all(parameter.device.type in fused_on for parameter in params)
        if not exempt:
            return DENSE_CLASSES[config.kind](params, **options)
        groups: list[dict[str, Any]] = [
            {"params": [parameter for parameter in params if parameter not in exempt]},
            {"params": [parameter for parameter in params if parameter in exempt], "weight_decay": 0.0},
        ]
        return DENSE_CLASSES[config.kind](groups, **options)

    optimizer = KeyedOptimizerWrapper(parameters, build)
    _create_state(optimizer, parameters)
    if clip_norm is None:
        return optimizer
    return GradientClippingOptimizer(optimizer, clipping=GradientClipping.NORM, max_gradient=clip_norm)


def _create_state(optimizer: KeyedOptimizerWrapper, parameters: dict[str, nn.Parameter]) -> None:
    """Creates moments by a step with zero gradients and undoes its effects (weight decay, step counts)."""
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer.init_state()
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(before[name])
        for state in optimizer.state.values():
            for value in state.values():
                if torch.is_tensor(value):
                    value.zero_()


class LearningRates:
    """Sets each learning rate to its base rate times the schedule's factor, which depends only on the step."""

    def __init__(self, optimizer: CombinedOptimizer, schedule: ScheduleConfig) -> None:
        self._groups = [(group, group["lr"]) for group in optimizer.param_groups]
        self._schedule = schedule

    def set(self, step: int, total_steps: int) -> None:
        """Sets the rates for step number `step`, counted from 0. The fused kernels use them from the next zero_grad."""
        factor = schedule_factor(self._schedule, step, total_steps)
        for group, base in self._groups:
            group["lr"] = base * factor


def schedule_factor(schedule: ScheduleConfig, step: int, total_steps: int) -> float:
    """The factor on the base learning rates at a step: rises from 1/warmup_steps to 1, then decays to `final`."""
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    if schedule.decay == "constant":
        return 1.0
    decay_steps = max(total_steps - schedule.warmup_steps, 1)
    progress = min((step - schedule.warmup_steps) / decay_steps, 1.0)
    shape = {"linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
    return schedule.final + (1 - schedule.final) * shape[schedule.decay]
