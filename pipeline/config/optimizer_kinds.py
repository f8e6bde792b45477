"""The optimizers that an experiment can name, and the facts about them that need no torch.

Their classes are in `pipeline/sharding/optimizers.py`, under the same names.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal


@dataclass(frozen=True, kw_only=True)
class SparseOptimizer:
    """An optimizer of embedding tables, fused into backward."""

    on_cpu: bool = True
    """Whether fbgemm implements it on CPU; on CUDA it implements all of them."""
    takes_eps: bool = True
    has_weight_decay: bool = False
    """Whether its kernels apply weight decay to every table. tests/sharding/test_weight_decay.py shows what the kernels
    on CPU do; those on CUDA were not tried, and Adam's have it by fbgemm's documentation."""
    state_bytes_per_weight: int = 0
    state_bytes_per_row: int = 0


@dataclass(frozen=True, kw_only=True)
class DenseOptimizer:
    """An optimizer of all other parameters."""

    fused_on: tuple[str, ...] | None = ("cpu", "cuda")
    """Devices on which torch updates a parameter in one fused kernel; None: the class has no argument `fused`."""


SPARSE_OPTIMIZERS = {
    "rowwise_adagrad": SparseOptimizer(state_bytes_per_row=4),
    "adagrad": SparseOptimizer(state_bytes_per_weight=4),
    "sgd": SparseOptimizer(takes_eps=False),
    "adam": SparseOptimizer(on_cpu=False, has_weight_decay=True, state_bytes_per_weight=8),
}

DENSE_OPTIMIZERS = {
    "adam": DenseOptimizer(),
    "adamw": DenseOptimizer(),
    "adagrad": DenseOptimizer(fused_on=("cpu",)),
    "sgd": DenseOptimizer(),
}

if TYPE_CHECKING:  # mypy cannot read a Literal that is made from a dict
    SparseKind = str
    DenseKind = str
else:
    SparseKind = Literal[tuple(SPARSE_OPTIMIZERS)]
    DenseKind = Literal[tuple(DENSE_OPTIMIZERS)]
