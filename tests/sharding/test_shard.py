"""The sharding plan does not change the model: weights are drawn by table and row, columns are selected by name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor

from pipeline.config.experiment import Experiment
from pipeline.errors import UserError
from pipeline.evaluation.predictions import predict
from pipeline.evaluation.split_evaluation import split_reader
from pipeline.sharding.model_inputs import model_inputs
from pipeline.sharding.shard import describe_plan, shard
from pipeline.table.manifest import read_manifest
from pipeline.workers.worker import Worker
from tests.training.runs import assert_identical, continued, new_run, run_on, tensors
from tests.workers import WorkerPool, one_worker

PLANS = ["table_wise", "column_wise", "row_wise", "table_row_wise", "grid_shard"]


def features(sharding: str | None, dim: int = 64) -> list[dict[str, Any]]:
    types = {"sharding": sharding} if sharding else {}
    return [
        {"name": "user", "column": "u", "kind": "categorical", "ids": {"hash": 48}, "dim": dim, **types},
        {"name": "item", "column": "i", "kind": "categorical", "ids": {"hash": 28}, "dim": dim},
        {"name": "tags", "column": "t", "kind": "multivalued", "ids": {"hash": 10}, "dim": dim, **types},
        {"name": "watched", "column": "w", "kind": "sequence", "shares": "item", "max_length": 6},
        {"name": "age", "column": "a", "kind": "numeric", "encode": {"standardize": "identity"}},
    ]


def predictions_of(worker: Worker, experiment: Experiment) -> tuple[list[str], torch.Tensor]:
    """Plan and predictions of a newly initialised model, for the test split in row order."""
    table = experiment.folder + "/table"
    manifest = read_manifest(table)
    model = shard(experiment, model_inputs(experiment, manifest.table_rows), worker)
    reader = split_reader(experiment, table, manifest, "test", worker, ["row"])
    rows, values = [], []
    for batch in predict(model.module, reader, worker.device, []):
        assert batch.keys is not None
        rows += batch.keys["row"].to_pylist()
        values.append(torch.from_numpy(batch.predictions.predictions))
    return describe_plan(model.plan), torch.cat(values)[torch.tensor(rows).argsort()]


def interleaved(parts: list[tuple[list[str], torch.Tensor]]) -> torch.Tensor:
    return torch.cat([values for _, values in parts])


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plans")
    new_run(folder, features=features(None))
    return folder


@pytest.mark.parametrize("plan", PLANS)
def test_predictions_do_not_depend_on_the_plan(two_workers: WorkerPool, table: Path, plan: str) -> None:
    from tests import synthetic

    reference = two_workers.run(predictions_of, synthetic.experiment(table, features=features("table_wise")))
    other = two_workers.run(predictions_of, synthetic.experiment(table, features=features(plan)))
    assert any(f"user: {plan}" in line for line in other[0][0]), other[0][0]
    torch.testing.assert_close(interleaved(other), interleaved(reference), rtol=1e-5, atol=1e-6)


def test_predictions_do_not_depend_on_the_workers(two_workers: WorkerPool, table: Path) -> None:
    from tests import synthetic

    experiment = synthetic.experiment(table, features=features(None))
    with one_worker() as worker:
        _, alone = predictions_of(worker, experiment)
    both = interleaved(two_workers.run(predictions_of, experiment))
    torch.testing.assert_close(both.sort(0).values, alone.sort(0).values, rtol=1e-5, atol=1e-6)


def plan_with_memory(worker: Worker, experiment: Experiment, memory: list[int]) -> list[str]:
    """The plan, where each worker believes in a memory of its own."""
    other = replace(worker, resources=replace(worker.resources, memory=memory[worker.rank]))
    manifest = read_manifest(experiment.folder + "/table")
    return describe_plan(shard(experiment, model_inputs(experiment, manifest.table_rows), other).plan)


def test_the_first_worker_plans_for_all(two_workers: WorkerPool, table: Path) -> None:
    from tests import synthetic

    experiment = synthetic.experiment(table, features=features(None))
    first, second = two_workers.run(plan_with_memory, experiment, [2**30, 1])
    assert first == second and len(first) == 3
    with pytest.raises(UserError, match="cannot place the embedding tables on 2 workers"):
        two_workers.run(plan_with_memory, experiment, [1, 2**30])
    assert two_workers.run(plan_with_memory, experiment, [2**30, 1])[1] == first  # no worker waits for the other


CHECKPOINTS = {"every_steps": 6, "keep_last": 100}


@pytest.fixture(scope="module")
def before(two_workers: WorkerPool, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    folder = tmp_path_factory.mktemp("before")
    experiment = new_run(folder, features=features("table_wise"), checkpoint=CHECKPOINTS)
    two_workers.run(run_on, experiment)
    return experiment


@pytest.mark.parametrize("plan", PLANS)
def test_a_run_continues_under_another_plan(
    two_workers: WorkerPool, before: Experiment, tmp_path: Path, plan: str
) -> None:
    """Weights and fused optimizer state of a table-wise plan can be loaded under any plan."""
    after = continued(before, tmp_path / "after", 6, features=features(plan), checkpoint=CHECKPOINTS)
    two_workers.run(run_on, after)
    expected, found = tensors(before, 24, tmp_path), tensors(after, 24, tmp_path)
    if plan == "table_wise":
        assert_identical(expected, found)
    for name, value in expected.items():
        if "embedding" in name and not name.startswith("own/"):
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=name)


def local_rows(worker: Worker, experiment: Experiment) -> dict[str, list[tuple[list[int], torch.Tensor]]]:
    manifest = read_manifest(experiment.folder + "/table")
    model = shard(experiment, model_inputs(experiment, manifest.table_rows), worker)
    return {
        name: [(list(part.metadata.shard_offsets), part.tensor.clone()) for part in value.local_shards()]
        for name, value in model.module.state_dict().items()
        if isinstance(value, ShardedTensor)
    }


def test_initial_rows_of_a_sharded_table_are_those_of_the_whole_table(two_workers: WorkerPool, table: Path) -> None:
    from tests import synthetic

    with one_worker() as worker:
        whole = local_rows(worker, synthetic.experiment(table, features=features("table_wise")))
    parts = two_workers.run(local_rows, synthetic.experiment(table, features=features("grid_shard")))
    seen = 0
    for name, ((_, expected),) in whole.items():
        assert expected.std() > 0
        for part in parts:
            for (row, column), values in part[name]:
                rows, columns = values.shape
                assert torch.equal(expected[row : row + rows, column : column + columns], values)
                seen += values.numel()
    assert seen == sum(expected.numel() for ((_, expected),) in whole.values())


def test_an_optimizer_that_cpu_lacks_is_an_error(table: Path) -> None:
    from tests import synthetic

    experiment = synthetic.experiment(table, features=features(None), training={"sparse_optimizer": {"kind": "adam"}})
    with one_worker() as worker, pytest.raises(UserError, match="'adam', which exists on CUDA only: on CPU use one of"):
        predictions_of(worker, experiment)
