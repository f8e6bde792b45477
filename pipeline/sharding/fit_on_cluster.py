"""Plans the placement of embedding tables on another cluster, and the memory that each worker needs there."""

from dataclasses import dataclass

import torch
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.planner import Topology

from models.embedding import SharedEmbedding
from models.inputs import EmbeddingTable, ModelInputs
from pipeline.config.experiment import Experiment
from pipeline.config.lanes import check_division
from pipeline.config.optimizer_kinds import SPARSE_OPTIMIZERS
from pipeline.errors import UserError
from pipeline.sharding.model_inputs import model_inputs
from pipeline.sharding.module import DenseStep, TrainingModule
from pipeline.sharding.shard import PooledSharder, make_sharding_plan, table_constraints
from pipeline.sizes import in_bytes
from pipeline.table.manifest import Manifest

BYTES = 4  # per weight


@dataclass(frozen=True)
class PlacedTable:
    """An embedding table and its place in the plan."""

    table: EmbeddingTable
    bytes: int  # with the state of the optimizer
    sharding_type: str
    ranks: list[int]  # one per part of the table: the rank of the worker that has the part


@dataclass(frozen=True)
class ClusterFit:
    """A plan and the memory that it needs."""

    tables: list[PlacedTable]
    table_bytes: float  # on the worker with the most
    dense_bytes: int  # on every worker: weights, gradients, moments

    def check(self, limit: int) -> None:
        """Raises UserError if the fullest worker needs more than `limit` bytes."""
        needed = self.table_bytes + self.dense_bytes
        if needed > limit:
            raise UserError(
                f"It does not fit: the fullest worker needs {in_bytes(needed)} ({in_bytes(self.table_bytes)} of "
                f"tables, {in_bytes(self.dense_bytes)} of the dense part) and has {in_bytes(limit)}. Use more workers "
                "or a smaller model."
            )


def fit_on_cluster(experiment: Experiment, manifest: Manifest, workers: int, device: str, limit: int) -> ClusterFit:
    """Plans for a number of workers.

    Args:
        experiment: of the run.
        manifest: of its feature table.
        workers: number of workers.
        device: of each worker, ``cpu`` or ``cuda``.
        limit: bytes of memory of each worker's device.

    Raises:
        UserError: the workers do not divide lanes and batch, or no plan fits the tables into that memory.
    """
    check_division(manifest.lanes, workers, experiment.training.global_batch_size)
    inputs = model_inputs(experiment, manifest.table_rows)
    dense = DenseStep(experiment.model, inputs, bf16=False)
    module = TrainingModule(SharedEmbedding(inputs, torch.device("meta")), dense)
    caps = {"hbm_cap": limit} if device == "cuda" else {"ddr_cap": limit}
    topology = Topology(world_size=workers, local_world_size=min(workers, 8), compute_device=device, **caps)
    local_batch = experiment.training.global_batch_size // workers
    plan = make_sharding_plan(
        module, [PooledSharder(), EmbeddingCollectionSharder()], topology, table_constraints(experiment), local_batch
    )
    sizes = table_bytes(experiment, inputs)
    tables = [
        PlacedTable(inputs.table(name), sizes[name], parameter.sharding_type, parameter.ranks or [])
        for part in plan.plan.values()
        for name, parameter in sorted(part.items())
    ]
    dense_bytes = sum(p.numel() for p in dense.parameters()) * BYTES * 4  # weight, gradient, two moments
    return ClusterFit(tables, max(bytes_by_worker(tables, workers)), dense_bytes)


def bytes_by_worker(tables: list[PlacedTable], workers: int) -> list[float]:
    """Bytes of tables on each worker, in order of rank; the parts of a table are assumed to be equally large."""
    placed = [0.0] * workers
    for table in tables:
        for rank in table.ranks:
            placed[rank] += table.bytes / len(table.ranks)
    return placed


def table_bytes(experiment: Experiment, inputs: ModelInputs) -> dict[str, int]:
    """Bytes of each table with its optimizer state."""
    known = SPARSE_OPTIMIZERS[experiment.training.sparse_optimizer.kind]
    of_weight, of_row = BYTES + known.state_bytes_per_weight, known.state_bytes_per_row
    return {t.name: t.rows * (t.dim * of_weight + of_row) for t in inputs.tables}
