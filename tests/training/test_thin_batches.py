"""A batch with few rows, such as the last one of an epoch, counts by its rows: in gradients and in log lines."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.build import build_dense
from models.embedding import SharedEmbedding
from models.heads.towers import HeadOutput
from models.losses import task_losses
from pipeline.config.experiment import Experiment
from pipeline.loading.position import Position
from pipeline.loading.reader import Reader
from pipeline.sharding.model_inputs import batch_columns, model_inputs
from pipeline.sharding.module import DenseStep, context_of
from pipeline.sharding.shard import shard
from pipeline.table.manifest import read_manifest
from pipeline.training.steps import PlainStep
from pipeline.workers.worker import Worker
from tests import synthetic
from tests.training.runs import Tensors, metrics, run_on
from tests.training.test_labels_and_weights import BOTH, LABELS
from tests.training.test_models import CORE, model
from tests.training.test_step import TABLE_WISE, batches, weights
from tests.workers import WorkerPool, one_worker

RATE, EPS = 0.05, 1e-8
TRAINING = {
    "sparse_optimizer": {"kind": "rowwise_adagrad", "lr": RATE, "eps": EPS},
    "dense_optimizer": {"kind": "sgd", "lr": RATE},
}


def thin_run(folder: Path, last: int = 1, **sections: Any) -> Experiment:
    """A run whose epochs have four full batches of 32 and one with a few rows."""
    experiment = synthetic.experiment(folder, **{"training": TRAINING, "features": TABLE_WISE, **sections})
    days = {"1": 64 + last, "2": 64, "3": 90, "4": 90}
    synthetic.write_table(Path(experiment.folder) / "table", experiment, days)
    return experiment


def sharded_epoch(worker: Worker, experiment: Experiment) -> tuple[Tensors, Tensors, Tensors]:
    """Weights before and after an epoch, and the accumulators of the tables that this worker has."""
    inputs = model_inputs(experiment, read_manifest(experiment.table_folder).table_rows)
    sharded = shard(experiment, inputs, worker)
    before, rows = weights(sharded.module), batches(experiment, worker.rank, worker.workers)
    step, steps = PlainStep(sharded, worker.device), iter(rows)
    while step(steps) is not None:
        pass
    accumulators = {}
    for name, of_table in sharded.module.fused_optimizer.state_dict()["state"].items():
        for value in of_table.values():
            if hasattr(value, "local_shards") and value.local_shards():
                accumulators[name.rpartition(".weight")[0].rpartition(".")[2]] = value.local_shards()[0].tensor.clone()
    return before, weights(sharded.module), accumulators


def plain_epoch(experiment: Experiment, before: Tensors) -> tuple[Tensors, Tensors]:
    """The epoch in plain PyTorch: the losses of the real rows, each weighted the same in every batch."""
    inputs = model_inputs(experiment, read_manifest(experiment.table_folder).table_rows)
    embedding, dense = SharedEmbedding(inputs, torch.device("cpu")), build_dense(experiment.model, inputs)
    parts = {"embedding.": embedding, "dense.model.": dense}
    for start, module in parts.items():
        module.load_state_dict({k.removeprefix(start): v for k, v in before.items() if k.startswith(start)})
    accumulators = {name: torch.zeros(len(table)) for name, table in embedding.named_parameters()}
    real_rows = []
    for batch in batches(experiment, 0, 1):
        with one_worker():
            context = context_of(batch)
        predictions, _ = dense(embedding(batch.ids, batch.sequences, batch.numerics), context)
        real = batch.weights > 0
        real_rows.append(int(real.sum()))
        loss = torch.zeros(())
        for k, task in enumerate(experiment.tasks):
            has_label = real & ~batch.labels[:, k].isnan()
            labels, parameters = batch.labels[has_label, k], predictions.parameters[k][has_label]
            counts = torch.ones(len(labels)) if batch.task_weights is None else batch.task_weights[has_label, k]
            if task.kind == "binary":
                losses = -(labels * parameters[:, 0] + (1 - labels) * parameters[:, 1])
            else:
                losses = (parameters[:, 0] - labels) ** 2
            mean = (losses * counts).sum() / counts.sum() if counts.sum() > 0 else torch.zeros(())
            loss = loss + mean * real.sum() / 32
        for module in parts.values():
            module.zero_grad()
        if loss.requires_grad:  # else no row counts
            loss.backward()
        with torch.no_grad():
            for name, table in embedding.named_parameters():
                gradient = torch.zeros_like(table) if table.grad is None else table.grad
                accumulators[name] += gradient.square().mean(1)
                table -= RATE * gradient / (accumulators[name].sqrt() + EPS).unsqueeze(1)
            for parameter in dense.parameters():
                if parameter.grad is not None:
                    parameter -= RATE * parameter.grad
    assert real_rows[:4] == [32] * 4 and real_rows[4] in (1, 3)
    after = {start + name: p.detach() for start, module in parts.items() for name, p in module.named_parameters()}
    return after, {name.removesuffix(".weight").rpartition(".")[2]: value for name, value in accumulators.items()}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("sections", "last"), [({}, 1), (LABELS, 1), (BOTH, 3)], ids=["all labels", "some labels", "labels and weights"]
)
def test_an_epoch_that_ends_with_few_rows_equals_a_loop_of_plain_pytorch(
    tmp_path: Path, two_workers: WorkerPool, workers: int, sections: dict[str, Any], last: int
) -> None:
    """Weights, and the accumulators of row-wise Adagrad, in which a gradient that is too large remains for ever."""
    experiment = thin_run(tmp_path, last, **sections)
    if workers == 1:
        with one_worker() as worker:
            results = [sharded_epoch(worker, experiment)]
    else:
        results = two_workers.run(sharded_epoch, experiment)
    before, after, accumulators = ({k: v for result in results for k, v in result[i].items()} for i in range(3))
    expected, sums = plain_epoch(experiment, before)
    assert accumulators.keys() == sums.keys() and after.keys() == expected.keys()
    for name, value in sums.items():
        torch.testing.assert_close(accumulators[name], value, rtol=1e-3, atol=1e-9, msg=name)
    for name, value in expected.items():
        torch.testing.assert_close(after[name], value, rtol=1e-3, atol=1e-5, msg=name)


VARIANTS = {
    "uncertainty": model("din", "mmoe", objective={"weighting": "uncertainty"}),
    "penalties": model("din", "aesm"),
    "core rule": model("concat", "htlnet", objective=CORE),
}


def gradients(worker: Worker, experiment: Experiment, size: int) -> Tensors:
    """Losses and gradients of a whole model on a single row in a batch of this size."""
    inputs = model_inputs(experiment, read_manifest(experiment.table_folder).table_rows)
    torch.manual_seed(0)
    embedding = SharedEmbedding(inputs, torch.device("cpu"))
    dense = DenseStep(experiment.model, inputs, bf16=False)
    folder, columns = experiment.table_folder, batch_columns(experiment, inputs)
    reader = Reader(folder, read_manifest(folder), "train", columns, global_batch_size=size, rank=0, workers=1, seed=5)
    batch = list(reader.epoch(Position()))[-1]
    assert batch.weight_total == 1 and batch.rows == size
    loss, output = dense(embedding(batch.ids, batch.sequences, batch.numerics), batch)
    loss.backward()
    parts = {"embedding": embedding, "dense": dense}
    found = {f"{part}.{name}": p.grad for part, of in parts.items() for name, p in of.named_parameters()}
    return {"losses": output.losses, **{name: grad for name, grad in found.items() if grad is not None}}


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_terms_of_the_loss_count_by_rows(tmp_path: Path, variant: str) -> None:
    """Learned weights, penalties of trunks and the rule of gradients: a single row of 128 has a quarter of the
    gradient of a single row of 32, and the same logged loss."""
    chosen = VARIANTS[variant]
    chosen["trunk"] = {**chosen["trunk"], **({"noise": 0.0} if chosen["trunk"]["kind"] == "aesm" else {})}
    experiment = thin_run(tmp_path, model=chosen)
    synthetic.write_table(Path(experiment.table_folder), experiment, {"1": 129, "2": 128, "3": 9, "4": 9})
    with one_worker() as worker:
        of_32, of_128 = (gradients(worker, experiment, size) for size in (32, 128))
    assert of_32.keys() == of_128.keys() and len(of_32) > 10
    torch.testing.assert_close(of_128.pop("losses"), of_32.pop("losses"))
    for name, gradient in of_128.items():
        torch.testing.assert_close(4 * gradient, of_32[name], rtol=1e-4, atol=1e-8, msg=name)


@given(
    days=st.tuples(st.integers(1, 90), st.integers(0, 40)),
    size=st.sampled_from([4, 8, 32, 64]),
    workers=st.sampled_from([1, 2, 4]),
)
@settings(max_examples=15, deadline=None)
def test_every_row_of_an_epoch_has_the_same_share_of_the_gradient(
    tmp_path_factory: pytest.TempPathFactory, days: tuple[int, int], size: int, workers: int
) -> None:
    """For a model without an update, d loss / d log-probability is the label's share: 1 / rows of a batch."""
    experiment = synthetic.experiment(tmp_path_factory.mktemp("shares"), tasks=synthetic_click())
    folder = experiment.table_folder
    Path(folder).mkdir(parents=True)
    counts = {"1": days[0], "2": days[1], "3": 1, "4": 1}
    manifest = synthetic.write_table(Path(folder), experiment, {day: rows for day, rows in counts.items() if rows})
    inputs = model_inputs(experiment, manifest.table_rows)
    embedding, dense = SharedEmbedding(inputs, torch.device("cpu")), DenseStep(experiment.model, inputs, bf16=False)
    shares = []
    for rank in range(workers):
        columns = batch_columns(experiment, inputs)
        reader = Reader(folder, manifest, "train", columns, global_batch_size=size, rank=rank, workers=workers, seed=5)
        for batch in reader.epoch(Position()):
            kept: list[HeadOutput] = []
            hook = dense.model.register_forward_hook(lambda _, __, output, kept=kept: kept.append(output[0]))
            loss, _ = dense(embedding(batch.ids, batch.sequences, batch.numerics), batch)
            hook.remove()
            (gradient,) = torch.autograd.grad(loss, [kept[0].parameters[0]])
            shares.append(-gradient.sum(1)[batch.weights > 0].numpy() / workers)  # loss: a mean over the workers
    everything = np.concatenate(shares)
    assert len(everything) == sum(days)
    np.testing.assert_allclose(everything, 1 / size, rtol=1e-5)


def synthetic_click() -> list[dict[str, Any]]:
    return [{"name": "click", "column": "c", "kind": "binary"}]


def losses_of_rows(experiment: Experiment) -> np.ndarray:
    """The losses of all training rows, ``(rows, tasks)``, with the weights at the start of a run."""
    inputs = model_inputs(experiment, read_manifest(experiment.table_folder).table_rows)
    with one_worker() as worker:
        sharded = shard(experiment, inputs, worker)
        found = []
        for batch in batches(experiment, 0, 1):
            with torch.no_grad():
                predictions, _ = sharded.module.module.dense.model(
                    sharded.module.module.embedding(batch.ids, batch.sequences, batch.numerics), context_of(batch)
                )
            for row in np.flatnonzero(batch.weights.numpy()):
                kept = HeadOutput(predictions.tasks, tuple(part[row : row + 1] for part in predictions.parameters))
                one = torch.ones(1)
                found.append(task_losses(kept, batch.labels[row : row + 1], one, one.sum()).numpy())
    return np.stack(found)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_logged_loss_of_an_epoch_is_the_mean_over_its_rows(
    tmp_path: Path, two_workers: WorkerPool, workers: int
) -> None:
    """And a log line of a single row has the loss of that row, not a part of it."""
    slow = {"kind": "sgd", "lr": 1e-12}
    for name, every in (("epoch", 5), ("step", 1)):
        training = {"sparse_optimizer": slow, "dense_optimizer": slow, "epochs": 1, "log_every_steps": every}
        training |= {"seed": 5, "shuffle_rows": 1}
        experiment = thin_run(tmp_path / name, training=training)
        rows = losses_of_rows(experiment)
        if workers == 1:
            with one_worker() as worker:
                run_on(worker, experiment)
        else:
            two_workers.run(run_on, experiment)
        logged = [record["tasks"] for record in metrics(experiment) if record["kind"] == "train"]
        found = [[of[task.name]["loss"] for task in experiment.tasks] for of in logged]
        expected = [rows.mean(0)] if every == 5 else [rows[i : i + 32].mean(0) for i in range(0, 129, 32)]
        np.testing.assert_allclose(found, expected, rtol=2e-5)
