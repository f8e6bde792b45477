"""Optimizers, schedules, and the learning rate that the fused kernels use."""

from pathlib import Path

import pytest
import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.distributed import DistributedModelParallel

from pipeline.config.optimizer_kinds import DENSE_OPTIMIZERS, SPARSE_OPTIMIZERS
from pipeline.config.training import DenseOptimizerConfig, ScheduleConfig, SparseOptimizerConfig
from pipeline.errors import UserError
from pipeline.loading.position import Position
from pipeline.sharding.model_inputs import batch_columns, model_inputs
from pipeline.sharding.optimizers import (
    DENSE_CLASSES,
    SPARSE_CLASSES,
    LearningRates,
    dense_optimizer,
    fuse_sparse_optimizer,
    schedule_factor,
)
from pipeline.sharding.shard import PooledSharder, shard
from pipeline.table.manifest import read_manifest
from pipeline.training.steps import PlainStep
from tests.training.runs import new_run
from tests.workers import one_worker


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (ScheduleConfig(), [1, 1, 1, 1, 1]),
        (ScheduleConfig(warmup_steps=2), [0.5, 1, 1, 1, 1]),
        (ScheduleConfig(decay="linear"), [1, 0.75, 0.5, 0.25, 0]),
        (ScheduleConfig(decay="linear", final=0.2, warmup_steps=2), [0.5, 1, 1, 0.6, 0.2]),
        (ScheduleConfig(decay="cosine"), [1, 0.853553, 0.5, 0.146447, 0]),
    ],
)
def test_schedule_by_hand(schedule: ScheduleConfig, expected: list[float]) -> None:
    assert [schedule_factor(schedule, step, 4) for step in range(5)] == pytest.approx(expected, abs=1e-6)


def test_the_fused_kernels_follow_the_schedule(tmp_path: Path) -> None:
    """With factor 0 neither tables nor dense weights change; with factor 1 both do."""
    experiment = new_run(tmp_path, training={"schedule": {"decay": "linear"}})
    manifest = read_manifest(experiment.folder + "/table")
    with one_worker() as worker:
        inputs = model_inputs(experiment, manifest.table_rows)
        model = shard(experiment, inputs, worker)
        rates = LearningRates(model.optimizer, experiment.training.schedule)
        batches = list(synthetic_batches(experiment.folder + "/table", batch_columns(experiment, inputs)))
        step = PlainStep(model, worker.device)

        def state() -> list[torch.Tensor]:
            tables = [
                v.local_shards()[0].tensor.clone()
                for v in model.module.state_dict().values()
                if hasattr(v, "local_shards")
            ]
            return [*tables, *(p.detach().clone() for p in model.module.parameters() if p.requires_grad)]

        before = state()
        rates.set(10, total_steps=10)
        step(iter(batches[:1]))
        assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))
        rates.set(0, total_steps=10)
        step(iter(batches[:1]))
        assert not any(torch.equal(a, b) for a, b in zip(before[:3], state()[:3], strict=True))


def synthetic_batches(table: str, columns):  # noqa: ANN001, ANN201
    from pipeline.loading.reader import Reader

    return Reader(table, read_manifest(table), "train", columns, global_batch_size=32, rank=0, workers=1).epoch(
        Position()
    )


def test_every_optimizer_of_the_experiment_file_has_a_class() -> None:
    assert (SPARSE_OPTIMIZERS.keys(), DENSE_OPTIMIZERS.keys()) == (SPARSE_CLASSES.keys(), DENSE_CLASSES.keys())


@pytest.mark.parametrize("kind", SPARSE_OPTIMIZERS)
def test_a_sparse_optimizer_takes_its_options_and_has_the_state_size_that_plan_assumes(kind: str) -> None:
    config = SparseOptimizerConfig(kind=kind, lr=0.1, eps=1e-5, weight_decay=0.3)
    known, cpu = SPARSE_OPTIMIZERS[kind], torch.device("cpu")
    table = EmbeddingBagCollection(
        tables=[EmbeddingBagConfig(name="t", embedding_dim=8, num_embeddings=6, feature_names=["f"])],
        device=torch.device("meta"),
    )
    if not known.on_cpu:
        with pytest.raises(UserError, match=f"'{kind}', which exists on CUDA only: on CPU use one of rowwise_adagrad"):
            fuse_sparse_optimizer(table.parameters(), config, cpu)
        return
    with one_worker() as worker:
        fuse_sparse_optimizer(table.parameters(), config, cpu)
        model = DistributedModelParallel(table, device=worker.device, sharders=[PooledSharder()])
    (of_table,) = model.fused_optimizer.state_dict()["state"].values()
    state = [value.local_shards()[0].tensor for value in of_table.values() if isinstance(value, ShardedTensor)]
    state_bytes = sum(value.numel() * value.element_size() for value in state)
    assert state_bytes == 6 * (8 * known.state_bytes_per_weight + known.state_bytes_per_row)


@pytest.mark.parametrize("kind", DENSE_OPTIMIZERS)
def test_creating_the_state_changes_nothing(kind: str) -> None:
    """The first steps equal those of the same optimizer from torch.optim, weight decay included."""
    torch.manual_seed(0)
    ours, plain = torch.nn.Parameter(torch.randn(3)), torch.nn.Parameter(torch.zeros(3))
    plain.data.copy_(ours.data)
    optimizer = dense_optimizer({"p": ours}, DenseOptimizerConfig(kind=kind, lr=0.1, weight_decay=0.3), None)
    fused = {} if DENSE_OPTIMIZERS[kind].fused_on is None else {"fused": True}
    reference = DENSE_CLASSES[kind]([plain], lr=0.1, weight_decay=0.3, **fused)  # type: ignore[call-arg]
    for _ in range(3):
        for parameter, opt in ((ours, optimizer), (plain, reference)):
            parameter.grad = torch.tensor([1.0, -2.0, 0.5])
            opt.step()
    assert torch.equal(ours, plain)


def test_clipping_bounds_the_norm_of_all_dense_gradients_together() -> None:
    a, b = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    optimizer = dense_optimizer({"a": a, "b": b}, DenseOptimizerConfig(kind="sgd", lr=1.0), clip_norm=1.0)
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([4.0])
    optimizer.step()
    assert [-a.item(), -b.item()] == pytest.approx([0.6, 0.8], abs=1e-4)
