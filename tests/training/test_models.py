"""Every model under the trainer: on two workers, resumed, and on data with a planted signal."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.experiment import Experiment
from pipeline.sharding.model_inputs import model_inputs
from pipeline.sharding.shard import shard
from pipeline.table.manifest import read_manifest
from pipeline.training.steps import PipelinedStep, PlainStep
from pipeline.workers.worker import Worker
from tests import synthetic
from tests.models.parts import BOTTOMS, SMALL
from tests.training.runs import Tensors, assert_identical, continued, metrics, new_run, run_on, tensors
from tests.training.test_step import SGD, batches, weights
from tests.workers import WorkerPool, one_worker


def model(bottom: str, trunk: str, **sections: Any) -> dict[str, Any]:
    chosen = {"bottom": {"kind": bottom, **BOTTOMS[bottom]}, "trunk": {"kind": trunk, **SMALL[trunk]}, **sections}
    if trunk == "aesm":
        chosen["trunk"] |= {"noise_steps": 20}
    return chosen


def steps(
    worker: Worker, experiment: Experiment, models: list[dict[str, Any]], count: int
) -> tuple[list[list[float]], list[list[float]]]:
    """Losses of the first steps of each model on the same batches, and sums of this worker's copy of its weights."""
    losses, copies = [], []
    for sections in models:
        chosen = experiment.model_copy(update={"model": type(experiment.model).model_validate(sections)})
        inputs = model_inputs(chosen, read_manifest(chosen.folder + "/table").table_rows)
        sharded = shard(chosen, inputs, worker)
        step, rows = PlainStep(sharded, worker.device), iter(batches(chosen, worker.rank, worker.workers)[:count])
        outputs = [step(rows) for _ in range(count)]
        assert all(len(output.diagnostics) == len(sharded.diagnostics) for output in outputs)
        losses.append([worker.sum(output.losses.clone()).sum().item() / worker.workers for output in outputs])
        copied = [value for name, value in weights(sharded.module).items() if name.startswith("dense.")]
        copies.append([value.double().sum().item() for value in copied])
    return losses, copies


def test_every_bottom_with_every_trunk_on_two_workers(tmp_path: Path, two_workers: WorkerPool) -> None:
    experiment = new_run(tmp_path)
    models = [model(bottom, trunk) for bottom, trunk in product(BOTTOMS, SMALL)]
    (losses, copies), (_, others) = two_workers.run(steps, experiment, models, 3, timeout=300)
    assert all(torch.tensor(of_model).isfinite().all() for of_model in losses)
    assert copies == others, "workers read different rows, and their copies of a model stay the same"


def after_a_step(worker: Worker, experiment: Experiment, pipelined: bool = False) -> tuple[Tensors, list[float]]:
    """Weights and buffers after a step on the last batch of an epoch, which is padded, and the step's diagnostics."""
    inputs = model_inputs(experiment, read_manifest(experiment.folder + "/table").table_rows)
    sharded = shard(experiment, inputs, worker)
    step = (PipelinedStep if pipelined else PlainStep)(sharded, worker.device)
    output = step(iter(batches(experiment, worker.rank, worker.workers)[-1:]))
    assert output is not None
    return weights(sharded.module), (worker.sum(output.diagnostics.clone()) / worker.workers).tolist()


def assert_a_step_of_two_workers_equals_a_step_of_one(experiment: Experiment, two_workers: WorkerPool) -> None:
    """Up to rounding, in both loops; the second loop of two workers equals the first bit by bit."""
    with one_worker() as worker:
        alone, diagnostics = after_a_step(worker, experiment)
    results = two_workers.run(after_a_step, experiment)
    together = {name: value for result in results for name, value in result[0].items()}
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        assert value.isfinite().all(), name
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert results[0][1] == results[1][1] == pytest.approx(diagnostics, rel=1e-3, abs=1e-6)
    for loop in two_workers.run(after_a_step, experiment, True):
        for name, value in loop[0].items():
            assert torch.equal(value, together[name]), name


def assert_a_resume_in_the_middle_is_exact(folder: Path, **settings: Any) -> Experiment:
    """Returns the run that was not interrupted."""
    settings |= {"checkpoint": {"every_steps": 5, "keep_last": 10}}
    whole = new_run(folder / "whole", **settings)
    with one_worker() as worker:
        run_on(worker, whole)
    resumed = continued(whole, folder / "resumed", 10, **settings)
    with one_worker() as worker:
        run_on(worker, resumed)
    last = max(record["step"] for record in metrics(whole))
    assert_identical(tensors(whole, last, folder), tensors(resumed, last, folder))
    assert metrics(whole) == metrics(resumed)
    return whole


CORE = {"gradients": {"kind": "core", "gamma": 0.7}}


@pytest.mark.parametrize(
    "sections",
    [
        model("din", "star"),
        model("concat", "aesm", objective=CORE),
        model("dtrn", "mmoe", objective={**CORE, "weighting": "uncertainty"}),
        model("din", "hmoe"),
        model("concat", "ple"),
        model("concat", "parallel_dnn"),
    ],
    ids=["star", "aesm+core", "dtrn+mmoe+core", "hmoe", "ple", "parallel_dnn"],
)
def test_a_step_of_two_workers_equals_a_step_of_one(
    tmp_path: Path, two_workers: WorkerPool, sections: dict[str, Any]
) -> None:
    """Moments, divergences, norms and inner products are those of the global batch."""
    if sections["trunk"]["kind"] == "aesm":
        sections["trunk"]["noise"] = 0.0
    features = [
        {**f, "sharding": "table_wise"} if "ids" in f else f
        for f in synthetic.experiment(tmp_path).model_dump(mode="json", exclude_defaults=True)["features"]
    ]
    experiment = new_run(tmp_path, model=sections, training=SGD, features=features)
    assert_a_step_of_two_workers_equals_a_step_of_one(experiment, two_workers)


@pytest.mark.parametrize(
    "sections",
    [model("concat", "aesm"), model("dtrn", "star", objective={"weighting": "uncertainty"}), model("din", "htlnet")],
    ids=["aesm", "star", "htlnet"],
)
def test_a_resume_in_the_middle_is_exact(tmp_path: Path, sections: dict[str, Any]) -> None:
    """Gate noise and its schedule, moving moments, learned task weights, drawn labels, sums of diagnostics."""
    whole = assert_a_resume_in_the_middle_is_exact(tmp_path, model=sections)
    names = {name for record in metrics(whole) for name in record.get("diagnostics", {})}
    assert names, "the models have diagnostics whose sums must be restored"


@pytest.mark.parametrize("trunk", SMALL)
def test_a_planted_signal_is_found(tmp_path: Path, trunk: str) -> None:
    """Clicks follow a hidden number of each user and item, which can be learned from rows of other days."""
    settings: dict[str, Any] = {
        "model": model("concat", trunk),
        "training": {"epochs": 6, "sparse_optimizer": {"lr": 0.5}, "dense_optimizer": {"lr": 0.02}},
    }
    experiment = new_run(tmp_path, **settings)
    with one_worker() as worker:
        run_on(worker, experiment)
    best = max(record["tasks"]["click"]["auc"] for record in metrics(experiment) if record["kind"] == "valid")
    assert best > 0.65, "the weakest trunk reached .71 over two seeds"
