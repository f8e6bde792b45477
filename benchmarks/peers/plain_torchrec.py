"""A well-written plain TorchRec loop, a contestant of rounds.py:
`python -m benchmarks.peers.plain_torchrec --data DIR --steps N [--workers 2]`.

Batches are made beforehand and held in memory. With two workers, each trains on its half of every batch.
"""

import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import cycle
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel, TrainPipelineSparseDist
from torchrec.distributed.embedding_types import ShardingType
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.streamable import Pipelineable

from benchmarks.peers.problem import (
    BATCH,
    DENSE_LR,
    DIM,
    FEATURES,
    ROWS,
    SCENARIO_DIM,
    SCENARIOS,
    TABLE_LR,
    Data,
    Mmoe,
    arguments,
    loss_of,
)
from benchmarks.rounds import serve

BATCHES = 64  # held in memory
NAMES = [*(f"feature_{number}" for number in range(FEATURES)), "scenario"]
DEVICE = torch.device("cpu")
PATIENCE = timedelta(hours=12)  # a worker waits while other contestants have their turns


@dataclass
class Batch(Pipelineable):
    """One worker's part of a batch."""

    ids: KeyedJaggedTensor
    labels: torch.Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        return Batch(self.ids.to(device, non_blocking), self.labels.to(device, non_blocking=non_blocking))

    def record_stream(self, stream: torch.Stream) -> None:
        self.ids.record_stream(stream)
        self.labels.record_stream(stream)

    def pin_memory(self) -> "Batch":
        return Batch(self.ids.pin_memory(), self.labels.pin_memory())


class Model(nn.Module):
    """All tables in one collection, the scenario's too, then the experts."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(ROWS, DIM)] * FEATURES + [(SCENARIOS, SCENARIO_DIM)]
        tables = [
            EmbeddingBagConfig(name=name, num_embeddings=rows, embedding_dim=dim, feature_names=[name])
            for name, (rows, dim) in zip(NAMES, sizes, strict=True)
        ]
        self.tables = EmbeddingBagCollection(tables=tables, device=torch.device("meta"))
        self.mmoe = Mmoe()

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and logits of a batch."""
        logits = self.mmoe(self.tables(batch.ids).values())
        return loss_of(logits, batch.labels), logits


def make_batch(data: Data, number: int, rank: int, workers: int) -> Batch:
    """A worker's part of a batch of the data."""
    mine = slice(rank * BATCH // workers, (rank + 1) * BATCH // workers)
    rows = data.rows_of(number)
    ids = torch.from_numpy(data.ids[rows][mine].T.copy()).long()
    values = torch.cat([ids.flatten(), torch.from_numpy(data.scenarios[rows][mine].copy())])
    lengths = torch.ones(len(values), dtype=torch.int32)
    labels = torch.from_numpy(data.labels[rows][mine].copy())
    return Batch(KeyedJaggedTensor.from_lengths_sync(NAMES, values, lengths), labels)


def shard(workers: int) -> tuple[DistributedModelParallel, CombinedOptimizer]:
    """The model with its tables placed by the planner, and its optimizers."""
    torch.manual_seed(0)
    model = Model()
    _apply_optimizer_in_backward(RowWiseAdagrad, model.tables.parameters(), {"lr": TABLE_LR})
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=workers, local_world_size=workers, compute_device=DEVICE.type),
        constraints={name: ParameterConstraints(sharding_types=[ShardingType.TABLE_WISE.value]) for name in NAMES},
        batch_size=BATCH // workers,
    )
    sharders = [EmbeddingBagCollectionSharder()]
    wrapped = DistributedModelParallel(model, device=DEVICE, plan=planner.plan(model, sharders), sharders=sharders)
    dense = KeyedOptimizerWrapper(
        dict(in_backward_optimizer_filter(wrapped.named_parameters())),
        lambda parameters: torch.optim.Adam(parameters, lr=DENSE_LR, fused=True),
    )
    return wrapped, CombinedOptimizer([wrapped.fused_optimizer, dense])


class Training:
    """One worker's model, pipeline and batches."""

    def __init__(self, data: Data, rank: int, workers: int) -> None:
        model, optimizer = shard(workers)
        model.train()
        batches = [make_batch(data, number, rank, workers) for number in range(BATCHES)]
        self._batches: Iterator[Batch] = cycle(batches)
        self._pipeline = TrainPipelineSparseDist(model, optimizer, DEVICE)

    def step(self) -> torch.Tensor:
        """Trains on the next batch and returns its logits."""
        logits: torch.Tensor = self._pipeline.progress(self._batches)
        return logits


def join(meeting: Path, rank: int, workers: int) -> None:
    """Makes this process one of the workers."""
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers))
    dist.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=workers, timeout=PATIENCE)


def next_steps(steps: int) -> int:
    """The first worker's number of steps for the next round, on every worker; 0 ends the work."""
    message = torch.tensor(steps)
    dist.broadcast(message, src=0)
    return int(message)


def follow(folder: Path, meeting: Path, rank: int, workers: int) -> None:
    """The work of every worker except the first."""
    join(meeting, rank, workers)
    training = Training(Data.open(folder), rank, workers)
    while steps := next_steps(0):
        for _ in range(steps):
            training.step()


def lead(folder: Path, meeting: Path, workers: int, steps: int) -> None:
    """The work of the first worker: takes turns with other contestants, while the other workers follow it."""
    join(meeting, 0, workers)
    training = Training(Data.open(folder), 0, workers)

    def work() -> float:
        for _ in range(next_steps(steps)):
            training.step()
        return steps * BATCH

    serve(work, workers=workers)
    next_steps(0)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--workers", type=int, choices=(1, 2), default=1)
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        others = [
            spawn.Process(target=follow, args=(options.data, meeting, rank, options.workers), daemon=True)
            for rank in range(1, options.workers)
        ]
        for other in others:
            other.start()
        lead(options.data, meeting, options.workers, options.steps)
        for other in others:
            other.join()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
