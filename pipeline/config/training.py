"""How a model is trained, saved and evaluated."""

from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.optimizer_kinds import DenseKind, SparseKind
from pipeline.section import Section


class TableConfig(Section):
    """How the feature table is laid out; fixed when it is made."""

    lanes: int = Field(default=64, ge=1)
    """Parts that the rows of each partition are spread over: a power of two that the number of workers divides."""
    seed: int = 0
    row_group_rows: int = Field(default=8192, ge=1)
    path: str | None = Field(default=None, min_length=1)
    """Folder or URI of the feature table, which experiments may share; null: `table/` in the run's folder."""
    encoders: Literal["fixed", "extend"] = "fixed"
    """Effect of new train partitions on the vocabularies: none, or their new values get ids after the existing ones."""

    @model_validator(mode="after")
    def _power_of_two(self) -> "TableConfig":
        if self.lanes & (self.lanes - 1):
            raise ValueError(f"`lanes` must be a power of two; {self.lanes} is not")
        return self


class SparseOptimizerConfig(Section):
    """Optimizer of the embedding tables, fused into backward."""

    kind: SparseKind = "rowwise_adagrad"
    lr: float = Field(default=0.05, gt=0)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)


class DenseOptimizerConfig(Section):
    """Optimizer of everything else."""

    kind: DenseKind = "adam"
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)


class ScheduleConfig(Section):
    """Factor on both learning rates: linear warm-up, then a decay to `final` over the rest of the run."""

    warmup_steps: int = Field(default=0, ge=0)
    decay: Literal["constant", "linear", "cosine"] = "constant"
    final: float = Field(default=0.0, ge=0, le=1)


class EarlyStoppingConfig(Section):
    """Stop when `metric` (TASK.METRIC on the valid split) has not improved for `patience` validations."""

    metric: str = Field(pattern=r"^\w+\.\w+$")
    patience: int = Field(default=3, ge=1)


class TrainingConfig(Section):
    """One global batch per step, divided evenly among the workers, whatever their number."""

    global_batch_size: int = Field(default=4096, ge=1)
    epochs: int = Field(default=1, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    loop: Literal["auto", "plain", "pipelined"] = "auto"
    """`pipelined` overlaps the exchange of ids with the previous step, with equal results; `auto` does so on CUDA."""
    sparse_optimizer: SparseOptimizerConfig = SparseOptimizerConfig()
    dense_optimizer: DenseOptimizerConfig = DenseOptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    clip_norm: float | None = Field(default=None, gt=0)
    shuffle_rows: int = Field(default=1_000_000, ge=1)
    """Rows, over all lanes, that are shuffled together in memory."""
    validate_every_steps: int | None = Field(default=None, ge=1)
    """Steps between validations; null: at the end of every epoch."""
    early_stopping: EarlyStoppingConfig | None = None
    log_every_steps: int = Field(default=20, ge=1)
    max_restarts: int = Field(default=3, ge=0)
    """How often Ray restarts the workers from the last complete checkpoint after a worker has died."""
    hang_timeout_s: float | None = Field(default=1800, gt=0)
    """Seconds without any progress after which workers that wait for each other exit; null: never."""


class CheckpointConfig(Section):
    """When to save and what to keep. The best checkpoint, if early stopping chooses one, is always kept."""

    every_steps: int | None = Field(default=None, ge=1)
    """Steps between checkpoints, in addition to the one at the end; null: at the end of every epoch."""
    keep_last: int = Field(default=3, ge=1)
    keep_every: int | None = Field(default=None, ge=1)
    """Also keep every checkpoint whose step is a multiple of this number."""
    background: bool = True
    """Continue training while a copy of the state is written; false: write first, which needs no memory for a copy."""


class EvaluationConfig(Section):
    """`group` names a key column: grouped AUC is the mean of the AUC within its groups, weighted by rows."""

    group: str | None = None
    batch_size: int = Field(default=16384, ge=1)
