"""A sharded step compared with the same step in plain PyTorch."""

from pathlib import Path

import pytest
import torch

from models.build import build_dense
from models.embedding import SharedEmbedding
from models.heads.towers import HeadOutput
from models.losses import task_losses
from models.trunks.base import Context
from pipeline.config.experiment import Experiment
from pipeline.loading.batch import Batch
from pipeline.loading.position import Position
from pipeline.loading.reader import Reader
from pipeline.sharding.model_inputs import batch_columns, model_inputs
from pipeline.sharding.shard import shard
from pipeline.table.manifest import read_manifest
from pipeline.training.steps import PlainStep
from pipeline.workers.worker import Worker
from tests.training.runs import Tensors, new_run
from tests.workers import WorkerPool, one_worker

RATE = 0.1
SGD = {"sparse_optimizer": {"kind": "sgd", "lr": RATE}, "dense_optimizer": {"kind": "sgd", "lr": RATE}}
TABLE_WISE = [
    {"name": "user", "column": "u", "kind": "categorical", "ids": {"hash": 48}, "dim": 8, "sharding": "table_wise"},
    {"name": "item", "column": "i", "kind": "categorical", "ids": {"hash": 28}, "dim": 8, "sharding": "table_wise"},
    {"name": "tags", "column": "t", "kind": "multivalued", "ids": {"hash": 10}, "dim": 4, "sharding": "table_wise"},
    {"name": "watched", "column": "w", "kind": "sequence", "shares": "item", "max_length": 6},
    {"name": "age", "column": "a", "kind": "numeric", "encode": {"standardize": "identity"}},
]


def batches(experiment: Experiment, rank: int, workers: int) -> list[Batch]:
    table = experiment.folder + "/table"
    manifest = read_manifest(table)
    columns = batch_columns(experiment, model_inputs(experiment, manifest.table_rows))
    reader = Reader(table, manifest, "train", columns, global_batch_size=32, rank=rank, workers=workers, seed=5)
    return list(reader.epoch(Position()))


def sharded_step(worker: Worker, experiment: Experiment) -> tuple[Tensors, Tensors]:
    """Weights before and after one step on the last batch of an epoch, which is padded."""
    inputs = model_inputs(experiment, read_manifest(experiment.folder + "/table").table_rows)
    model = shard(experiment, inputs, worker)
    before = weights(model.module)
    PlainStep(model, worker.device)(iter(batches(experiment, worker.rank, worker.workers)[-1:]))
    return before, weights(model.module)


def weights(module: torch.nn.Module) -> Tensors:
    """The tables that this worker has, and the dense parameters. Only for tables that are on one worker."""
    found = {}
    for name, value in module.state_dict().items():
        parts = value.local_shards() if hasattr(value, "local_shards") else None
        if parts is None:
            found[name] = value.clone()
        elif parts:
            found[name] = parts[0].tensor.clone()
    return found


def plain_step(experiment: Experiment, before: Tensors) -> Tensors:
    """The same step without TorchRec's sharding: summed loss of the real rows / batch size, gradient, subtraction."""
    inputs = model_inputs(experiment, read_manifest(experiment.folder + "/table").table_rows)
    embedding, dense = SharedEmbedding(inputs, torch.device("cpu")), build_dense(experiment.model, inputs)
    embedding.load_state_dict(
        {k.removeprefix("embedding."): v for k, v in before.items() if k.startswith("embedding.")}
    )
    prefix = "dense.model."
    dense.load_state_dict({k.removeprefix(prefix): v for k, v in before.items() if k.startswith(prefix)})
    batch = batches(experiment, 0, 1)[-1]
    real = batch.weights > 0
    assert 0 < real.sum() < len(real), "the last batch is padded"
    ones = torch.ones(int(real.sum()))
    context = Context(batch.scenarios, batch.weights, ones.sum(), batch.noise_keys)
    predictions, _ = dense(embedding(batch.ids, batch.sequences, batch.numerics), context)
    kept = HeadOutput(predictions.tasks, tuple(part[real] for part in predictions.parameters))
    task_losses(kept, batch.labels[real], ones, torch.tensor(float(batch.rows))).sum().backward()
    after = {}
    for start, module in (("embedding.", embedding), (prefix, dense)):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None
            after[start + name] = (parameter - RATE * parameter.grad).detach()
    return after


@pytest.mark.parametrize("workers", [1, 2])
def test_a_step_equals_that_of_plain_pytorch(tmp_path: Path, two_workers: WorkerPool, workers: int) -> None:
    """Gradients are of the sum over the global batch's real rows, divided by its size, on any number of workers."""
    experiment = new_run(tmp_path, training=SGD, features=TABLE_WISE)
    if workers == 1:
        with one_worker() as worker:
            results = [sharded_step(worker, experiment)]
    else:
        results = two_workers.run(sharded_step, experiment)
    before = {name: value for result in results for name, value in result[0].items()}
    after = {name: value for result in results for name, value in result[1].items()}
    expected = plain_step(experiment, before)
    assert expected.keys() == after.keys()
    for name, value in expected.items():
        torch.testing.assert_close(after[name], value, rtol=1e-4, atol=1e-6, msg=name)
        assert not torch.equal(before[name], after[name]), f"{name} has changed"
