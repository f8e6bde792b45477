"""Rows that have labels of some tasks only, and weights: from lane files to losses, on one worker and on two."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest
import torch

from models.build import build_dense
from models.embedding import SharedEmbedding
from models.task_weights import TaskWeights
from models.trunks.base import this_worker_alone
from pipeline.config.experiment import Experiment
from pipeline.loading.position import Position
from pipeline.loading.reader import Reader
from pipeline.sharding.model_inputs import batch_columns, model_inputs
from pipeline.sharding.module import StepOutput, context_of
from pipeline.sharding.shard import shard
from pipeline.table.manifest import LABEL, WEIGHT, read_manifest
from pipeline.training.running_metrics import RunningMetrics
from pipeline.training.steps import PlainStep
from pipeline.workers.worker import Worker
from tests import synthetic
from tests.models.parts import BOTTOMS, SMALL
from tests.training.runs import Tensors, assert_identical, continued, metrics, new_run, run_on, tensors
from tests.training.test_models import CORE, assert_a_step_of_two_workers_equals_a_step_of_one, model, steps
from tests.training.test_step import RATE, SGD, TABLE_WISE, batches, weights
from tests.training.test_windows import train, with_days
from tests.workers import WorkerPool, one_worker

TASKS: list[dict[str, Any]] = [
    {"name": "click", "column": "c", "kind": "binary", "missing": "skip"},
    {"name": "buy", "column": "b", "kind": "binary", "after": "click", "only": {"tab": [1]}},
    {"name": "value", "column": "v", "kind": "continuous", "after": "buy", "missing": "skip", "sample_weight": "x"},
]
LABELS: dict[str, Any] = {"tasks": [{k: v for k, v in task.items() if k != "sample_weight"} for task in TASKS]}
BOTH: dict[str, Any] = {"tasks": TASKS, "logs": {"weight": "y", "negatives": {"task": "click", "keep": 0.5}}}


@pytest.mark.parametrize("sections", [LABELS, BOTH], ids=["labels", "labels and weights"])
def test_a_batch_has_the_labels_and_weights_of_its_rows(tmp_path: Path, sections: dict[str, Any]) -> None:
    experiment = new_run(tmp_path, **sections)
    folder = Path(experiment.table_folder)
    table = ds.dataset(folder / "train", format="parquet").to_table().to_pandas().set_index("key:row")
    manifest = read_manifest(str(folder))
    columns = batch_columns(experiment, model_inputs(experiment, manifest.table_rows), ("row",))
    reader = Reader(str(folder), manifest, "train", columns, global_batch_size=32, rank=0, workers=1, seed=3)
    names, seen = [task.name for task in experiment.tasks], 0
    for batch in reader.epoch(Position()):
        assert batch.keys is not None and batch.task_weights is not None
        real = batch.weights.numpy() > 0
        rows = table.loc[batch.keys["row"].to_pandas()[real]]
        labels = rows[[LABEL + name for name in names]].to_numpy()
        counted = rows[[WEIGHT + name for name in names]].to_numpy() if experiment.has_weights else np.ones_like(labels)
        np.testing.assert_array_equal(batch.labels.numpy()[real], labels)
        np.testing.assert_array_equal(batch.task_weights.numpy()[real], np.where(np.isnan(labels), 0, counted))
        assert not batch.task_weights[~torch.from_numpy(real)].any()
        seen += len(rows)
    assert seen == 354 and table[[LABEL + name for name in names]].isna().any().all()


def test_without_weights_and_missing_labels_a_batch_has_no_weights_for_tasks(tmp_path: Path) -> None:
    assert all(batch.task_weights is None for batch in batches(new_run(tmp_path), 0, 1))


def sharded_step(worker: Worker, experiment: Experiment, number: int) -> tuple[Tensors, Tensors]:
    """Weights before and after a step on one batch of an epoch."""
    inputs = model_inputs(experiment, read_manifest(experiment.table_folder).table_rows)
    sharded = shard(experiment, inputs, worker)
    before = weights(sharded.module)
    PlainStep(sharded, worker.device)(iter([batches(experiment, worker.rank, worker.workers)[number]]))
    return before, weights(sharded.module)


def plain_step(experiment: Experiment, number: int, before: Tensors) -> Tensors:
    """The step of `sharded_step` in plain PyTorch: for each task, over the rows that have its label."""
    inputs = model_inputs(experiment, read_manifest(experiment.table_folder).table_rows)
    embedding, dense = SharedEmbedding(inputs, torch.device("cpu")), build_dense(experiment.model, inputs)
    parts = {"embedding.": embedding, "dense.model.": dense}
    for start, module in parts.items():
        module.load_state_dict({k.removeprefix(start): v for k, v in before.items() if k.startswith(start)})
    batch = batches(experiment, 0, 1)[number]
    assert batch.task_weights is not None
    with one_worker():
        context = context_of(batch)
    predictions, _ = dense(embedding(batch.ids, batch.sequences, batch.numerics), context)
    total = torch.zeros(())
    for k, task in enumerate(experiment.tasks):
        has_label = ~batch.labels[:, k].isnan() & (batch.weights > 0)
        labels, row_weights = batch.labels[has_label, k], batch.task_weights[has_label, k]
        if row_weights.sum() == 0:
            continue
        parameters = predictions.parameters[k][has_label]
        if task.kind == "binary":
            losses = -(labels * parameters[:, 0] + (1 - labels) * parameters[:, 1])
        else:
            losses = (parameters[:, 0] - labels) ** 2
        total = total + (row_weights * losses).sum() / row_weights.sum()
    (total * (batch.weights > 0).sum() / batch.rows).backward()
    after = {}
    for start, module in parts.items():
        for name, parameter in module.named_parameters():
            change = 0.0 if parameter.grad is None else RATE * parameter.grad
            after[start + name] = (parameter - change).detach()
    return after


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [0, -1])
@pytest.mark.parametrize("sections", [LABELS, BOTH], ids=["labels", "labels and weights"])
def test_a_step_equals_that_of_plain_pytorch(
    tmp_path: Path, two_workers: WorkerPool, workers: int, number: int, sections: dict[str, Any]
) -> None:
    """On a full batch; and on the last, most of which is padding, and in which no row counts for a task."""
    experiment = new_run(tmp_path, training=SGD, features=TABLE_WISE, **sections)
    if workers == 1:
        with one_worker() as worker:
            results = [sharded_step(worker, experiment, number)]
    else:
        results = two_workers.run(sharded_step, experiment, number)
    before = {name: value for result in results for name, value in result[0].items()}
    after = {name: value for result in results for name, value in result[1].items()}
    expected = plain_step(experiment, number, before)
    assert expected.keys() == after.keys()
    for name, value in expected.items():
        torch.testing.assert_close(after[name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    "sections",
    [
        model("din", "star"),
        model("dtrn", "aesm", objective=CORE),
        model("concat", "htlnet", objective={"weighting": "uncertainty"}),
    ],
    ids=["star", "dtrn+aesm+core", "htlnet+uncertainty"],
)
def test_a_step_of_two_workers_equals_a_step_of_one(
    tmp_path: Path, two_workers: WorkerPool, sections: dict[str, Any]
) -> None:
    """Weighted moments, divergences and inner products are those of the global batch, in both loops."""
    for key in {"noise", "temperature"} & {*sections["trunk"]}:
        sections["trunk"].pop(key)
    if sections["trunk"]["kind"] == "aesm":
        sections["trunk"]["noise"] = 0.0
    experiment = new_run(tmp_path, model=sections, training=SGD, features=TABLE_WISE, **BOTH)
    assert_a_step_of_two_workers_equals_a_step_of_one(experiment, two_workers)


def test_every_bottom_with_every_trunk_on_two_workers(tmp_path: Path, two_workers: WorkerPool) -> None:
    experiment = new_run(tmp_path, **BOTH)
    models = [model(bottom, trunk) for bottom, trunk in product(BOTTOMS, SMALL)]
    (losses, copies), (_, others) = two_workers.run(steps, experiment, models, 3, timeout=300)
    assert all(torch.tensor(of_model).isfinite().all() for of_model in losses)
    assert copies == others


# 354 rows in batches of 32: 12 steps per epoch, 24 in all.
RUN: dict[str, Any] = {
    **BOTH,
    "checkpoint": {"every_steps": 5, "keep_last": 100},
    "training": {"log_every_steps": 3, "early_stopping": {"metric": "buy.log_loss", "patience": 5}},
    "model": {"trunk": {"kind": "star", **SMALL["star"]}, "objective": {"weighting": "uncertainty"}},
}


@pytest.fixture(scope="module")
def straight(two_workers: WorkerPool, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    experiment = new_run(tmp_path_factory.mktemp("straight"), **RUN)
    assert two_workers.run(run_on, experiment) == ["finished", "finished"]
    return experiment


@pytest.mark.parametrize(("step", "loop"), [(5, "plain"), (10, "pipelined")])
def test_resume_is_exact(straight: Experiment, two_workers: WorkerPool, tmp_path: Path, step: int, loop: str) -> None:
    """Between two log lines, so that sums of losses and weights are restored too."""
    sections = {**RUN, "training": {**RUN["training"], "loop": loop}}
    resumed = continued(straight, tmp_path, step, **sections)
    two_workers.run(run_on, resumed)
    assert_identical(tensors(straight, 24, tmp_path), tensors(resumed, 24, tmp_path))
    assert metrics(resumed) == metrics(straight)


def test_one_worker_gives_the_same_run_as_two(straight: Experiment, tmp_path: Path) -> None:
    """Up to rounding: losses and metrics of training, validations, and the row counts of tasks."""
    alone = new_run(tmp_path, **RUN)
    with one_worker() as worker:
        run_on(worker, alone)
    for a, b in zip(metrics(straight), metrics(alone), strict=True):
        for task in ("click", "buy", "value"):
            one, other = a["tasks"][task], b["tasks"][task]
            assert one.keys() == other.keys()
            for name in {"loss", "log_loss", "rmse", "calibration", "weight", "rows"} & one.keys():
                assert other[name] == pytest.approx(one[name], rel=2e-3)
    last = metrics(alone)[-1]
    assert last["kind"] == "valid" and last["tasks"]["buy"]["scenarios"]["tab=0"]["rows"] == 0
    assert last["tasks"]["buy"]["scenarios"]["tab=0"]["auc"] is None
    assert 0 < last["tasks"]["buy"]["rows"] < last["tasks"]["click"]["rows"] < last["rows"] == 90


def test_a_new_task_needs_no_labels_in_old_days(tmp_path: Path) -> None:
    """The run of a model without weights continues with a task that only some rows have."""
    train(with_days(tmp_path, 1, 2))
    old = synthetic.experiment(tmp_path).model_dump(mode="json", exclude_defaults=True)["tasks"]
    new = {"name": "share", "column": "sh", "kind": "binary", "after": "click", "missing": "skip"}
    grown = with_days(tmp_path, 1, 2, tasks=[*old, new])
    assert train(grown) == "finished"
    lines = metrics(grown)
    assert "share" not in lines[0]["tasks"] and lines[-1]["step"] == 48
    assert all(record["tasks"]["share"]["loss"] > 0 for record in lines if "loss" in record["tasks"].get("share", {}))
    last = lines[-1]["tasks"]
    assert 0 < last["share"]["rows"] < last["click"]["rows"] == 90 and "weight" not in last["share"]
    assert last["share"]["log_loss"] is not None


def sums_of(worker: Worker) -> tuple[dict[str, dict[str, float | None]], dict[str, float]]:
    """Two steps. Task a: losses 1 and 4 with weights 3 and 1; task b: one loss of 5; task c: no label."""
    running = RunningMetrics(["a", "b", "c"], [0, 2], ("d",), worker, has_task_weights=True)
    values = [torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.0, 0.0]])]
    for of_rows, losses in zip(values, ([1.0, 0.0, 0.0], [4.0, 5.0, 0.0]), strict=True):
        running.update(
            StepOutput(
                losses=torch.tensor(losses),
                scores=torch.tensor([[0.9, 0.0, 0.5], [0.1, 0.0, 0.5]]),
                labels=torch.tensor([[1.0, 2.0, torch.nan], [0.0, torch.nan, torch.nan]]),
                weights=torch.ones(2),
                fill=torch.tensor(1.0),
                scenarios=torch.zeros(2, 1, dtype=torch.long),
                position=Position(),
                diagnostics=torch.tensor([2.0]),
                experts={},
                task_weights=TaskWeights.of(of_rows, this_worker_alone),
            )
        )
    return running.report()


def test_the_loss_of_a_log_line_is_a_mean_over_rows() -> None:
    with one_worker() as worker:
        report, diagnostics = sums_of(worker)
    assert report == {
        "a": {"loss": pytest.approx((3 * 1.0 + 1 * 4.0) / 4), "auc": 1.0},
        "b": {"loss": pytest.approx(5.0)},
        "c": {"loss": None, "auc": None},
    }
    assert diagnostics == {"d": 2.0}


def test_the_expected_loss_of_a_sample_is_the_loss_of_the_full_log() -> None:
    """Over all samples of four negatives that are kept with probability 0.25, each weighted by how likely it is.

    The sums of a batch are unbiased, and their ratio converges to the mean of the full log.
    """
    losses, keep = torch.tensor([0.5, 1.0, 2.0, 4.0, 3.0]), 0.25  # the last row is a positive
    numerator, denominator = 0.0, 0.0
    for kept in product([0, 1], repeat=4):
        probability = keep ** sum(kept) * (1 - keep) ** (4 - sum(kept))
        values = torch.tensor([[k / keep] for k in kept] + [[1.0]])
        of_rows = TaskWeights.of(values, this_worker_alone)
        total = of_rows.totals.item()
        numerator += probability * of_rows.mean(losses.unsqueeze(1)).item() * total
        denominator += probability * total
    assert numerator == pytest.approx(losses.sum().item()) and denominator == pytest.approx(5.0)
