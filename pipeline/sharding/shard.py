"""Turns an unsharded model into a sharded model with its optimizer: constraints, plan, wrapping, optimizers."""

import hashlib
import logging
import math
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import ShardingType
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import ModuleSharder, ShardingPlan
from torchrec.optim.keyed import CombinedOptimizer
from torchrec.optim.optimizers import in_backward_optimizer_filter

from models.embedding import SharedEmbedding
from models.inputs import EmbeddingTable, ModelInputs
from models.weight_decay import spared_parameters
from pipeline.config.experiment import Experiment
from pipeline.errors import UserError
from pipeline.sharding.cpu_kernels import use_cpu_kernels
from pipeline.sharding.module import DenseStep, TrainingModule
from pipeline.sharding.optimizers import dense_optimizer, fuse_sparse_optimizer
from pipeline.workers.worker import Worker

log = logging.getLogger(__name__)

ROW_WISE = [ShardingType.ROW_WISE.value, ShardingType.TABLE_ROW_WISE.value, ShardingType.GRID_SHARD.value]
# The planner's choices, unless the experiment names another. Data-parallel tables are left out: their optimizer state
# cannot be loaded under another plan.
DEFAULT_TYPES = [ShardingType.TABLE_WISE.value, ShardingType.ROW_WISE.value]
INIT_ROWS = 65_536  # rows initialised per seed


class PooledSharder(EmbeddingBagCollectionSharder):
    """TorchRec's sharder, with the row-wise types on CPU too: gloo supports them if all workers have equal rows."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return list(dict.fromkeys([*super().sharding_types(compute_device_type), *ROW_WISE]))


@dataclass
class ShardedModel:
    """A model with its optimizer, ready for training steps."""

    module: DistributedModelParallel
    optimizer: CombinedOptimizer
    plan: ShardingPlan
    diagnostics: tuple[str, ...]  # names of StepOutput.diagnostics


def shard(experiment: Experiment, inputs: ModelInputs, worker: Worker) -> ShardedModel:
    """Builds the experiment's model on this worker.

    Raises:
        UserError: no plan fits the workers, the constraints or the memory.
    """
    settings = experiment.training
    torch.manual_seed(settings.seed)
    # Tables are created on the meta device, so that no worker ever has a whole table in memory.
    embedding = SharedEmbedding(inputs, torch.device("meta"))
    dense = DenseStep(experiment.model, inputs, settings.precision == "bf16").to(worker.device)
    if worker.device.type == "cpu":
        use_cpu_kernels(dense)
    module = TrainingModule(embedding, dense)
    fuse_sparse_optimizer(embedding.parameters(), settings.sparse_optimizer, worker.device)
    sharders: list[ModuleSharder[nn.Module]] = [PooledSharder(), EmbeddingCollectionSharder()]
    topology, constraints = _topology(worker), table_constraints(experiment)
    local_batch = settings.global_batch_size // worker.workers
    # One worker plans for all: plans that differ in one table make workers exchange rows that do not exist.
    plan = worker.on_first(lambda: make_sharding_plan(module, sharders, topology, constraints, local_batch))
    with _local_workers_of_torchrec(worker.resources.local_workers), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch")  # from inside torchrec's DDP call
        wrapped = DistributedModelParallel(module, device=worker.device, plan=plan, sharders=sharders)
    initialise_tables(wrapped, inputs.tables, settings.seed)
    replicated = dict(in_backward_optimizer_filter(wrapped.named_parameters()))
    lay_out_gradients(replicated.values())
    spared = {f"dense.{name}" for name in spared_parameters(dense)}
    of_dense = dense_optimizer(replicated, settings.dense_optimizer, settings.clip_norm, spared)
    optimizer = CombinedOptimizer([wrapped.fused_optimizer, of_dense])
    return ShardedModel(wrapped, optimizer, plan, dense.diagnostics)


def lay_out_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Makes gradients have the strides of their parameters, also in dimensions of size 1.

    There, strides mean nothing, and matrix products return any; but DDP compares them, and prints a warning about slow
    gradients. In other dimensions autograd itself sees to it.
    """
    for parameter in parameters:
        if 1 in parameter.shape and parameter.dim() > 1:
            parameter.register_hook(lambda gradient: gradient.reshape(-1).view(gradient.shape))


def table_constraints(experiment: Experiment) -> dict[str, ParameterConstraints]:
    """The sharding types that the experiment allows for each table."""
    constraints = {}
    for feature in experiment.features:
        if feature.table_width is not None:
            types = [feature.sharding_type] if feature.sharding_type else DEFAULT_TYPES
            constraints[feature.name] = ParameterConstraints(sharding_types=types)
    return constraints


def make_sharding_plan(
    module: nn.Module,
    sharders: list[ModuleSharder[nn.Module]],
    topology: Topology,
    constraints: dict[str, ParameterConstraints],
    local_batch: int,
) -> ShardingPlan:
    """Makes a plan with TorchRec's planner.

    Raises:
        UserError: no plan fits the workers, the constraints or the memory.
    """
    planner = EmbeddingShardingPlanner(
        topology=topology,
        constraints=constraints,
        batch_size=local_batch,
        storage_reservation=FixedPercentageStorageReservation(0.15),
    )
    try:
        return planner.plan(module, sharders)
    except (PlannerError, RuntimeError) as error:  # the planner raises both for a constraint that nothing meets
        reason = str(error).strip().splitlines()[0].strip()
        raise UserError(
            f"TorchRec's planner cannot place the embedding tables on {topology.world_size} workers "
            f"({topology.compute_device}): {reason} Use more workers, smaller tables, or another `sharding` of the "
            "feature."
        ) from error


def initialise_tables(module: nn.Module, tables: tuple[EmbeddingTable, ...], seed: int) -> None:
    """Draws weights uniformly in ±1/sqrt(rows), by seed, table and row: independent of the workers and the plan."""
    sizes = {table.name: table for table in tables}
    with torch.no_grad():
        for name, value in module.state_dict().items():
            table = sizes.get(name.removesuffix(".weight").rpartition(".")[2])
            if table is None or not isinstance(value, ShardedTensor):
                continue
            for part in value.local_shards():
                first, left = part.metadata.shard_offsets
                rows, width = part.metadata.shard_sizes
                for block in range(first // INIT_ROWS, -(-(first + rows) // INIT_ROWS)):
                    start = max(block * INIT_ROWS, first)
                    stop = min((block + 1) * INIT_ROWS, first + rows)
                    drawn = _draw(seed, table, block)[start - block * INIT_ROWS : stop - block * INIT_ROWS]
                    part.tensor[start - first : stop - first].copy_(drawn[:, left : left + width])


def _draw(seed: int, table: EmbeddingTable, block: int) -> torch.Tensor:
    digest = hashlib.sha256(f"{seed}/{table.name}/{block}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    bound = 1 / math.sqrt(table.rows)
    return torch.empty(INIT_ROWS, table.dim).uniform_(-bound, bound, generator=generator)


def _topology(worker: Worker) -> Topology:
    resources, device = worker.resources, worker.device.type
    caps = {"ddr_cap": resources.memory}
    if resources.device_memory is not None:
        caps["hbm_cap"] = resources.device_memory
    return Topology(world_size=worker.workers, local_world_size=resources.local_workers, compute_device=device, **caps)


@contextmanager
def _local_workers_of_torchrec(local_workers: int) -> Iterator[None]:
    """Makes TorchRec split the workers into machines as the plan does.

    For some sharding types it makes groups of the workers of a machine, whose number it reads from this variable. The
    launcher has set it for this machine alone; on another machine it may be different.
    """
    name = "LOCAL_WORLD_SIZE"
    before = os.environ.get(name)
    os.environ[name] = str(local_workers)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def describe_plan(plan: ShardingPlan) -> list[str]:
    """One line per table: its sharding type and its workers."""
    lines = []
    for module_plan in plan.plan.values():
        for name, parameter in module_plan.items():
            lines.append(f"{name}: {parameter.sharding_type} on workers {sorted(set(parameter.ranks))}")
    return sorted(lines)
