"""Weights of ids from lane files to a step, on one worker and on two, under every plan."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest
import torch

from pipeline.loading.position import Position
from pipeline.loading.reader import Reader
from pipeline.sharding.model_inputs import batch_columns, model_inputs
from pipeline.table.manifest import ID_WEIGHTS, read_manifest
from tests import synthetic
from tests.sharding.test_shard import PLANS, interleaved, predictions_of
from tests.training.runs import new_run
from tests.training.test_models import (
    assert_a_resume_in_the_middle_is_exact,
    assert_a_step_of_two_workers_equals_a_step_of_one,
)
from tests.training.test_step import SGD, batches, plain_step, sharded_step
from tests.workers import WorkerPool, one_worker

OWN: dict[str, Any] = {"ids": {"hash": 10}, "dim": 64}
SHARED: dict[str, Any] = {"shares": "item"}


def features(tags: dict[str, Any], sharding: str = "table_wise") -> list[dict[str, Any]]:
    """Tags with weights, in a table of their own or in the table that a sequence uses."""
    weighted = {"name": "tags", "column": "t", "kind": "multivalued", "separator": "|", "weights": ":", **tags}
    user = {"name": "user", "column": "u", "kind": "categorical", "ids": {"hash": 48}, "dim": 64}
    item = {"name": "item", "column": "i", "kind": "categorical", "ids": {"hash": 28}, "dim": 64}
    return [
        {**user, "sharding": sharding},
        {**item, "sharding": "table_wise"},
        {**weighted, **({"sharding": sharding} if "ids" in tags else {})},
        {"name": "watched", "column": "w", "kind": "sequence", "shares": "item", "max_length": 6},
    ]


@pytest.mark.parametrize("tags", [OWN, SHARED], ids=["own", "shared"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_batch_has_the_weights_of_its_ids(tmp_path: Path, tags: dict[str, Any], workers: int) -> None:
    experiment = new_run(tmp_path, features=features(tags))
    folder = Path(experiment.table_folder)
    rows = ds.dataset(folder / "train", format="parquet").to_table().to_pandas().set_index("key:row")
    manifest = read_manifest(str(folder))
    columns = batch_columns(experiment, model_inputs(experiment, manifest.table_rows), ("row",))
    seen = 0
    for rank in range(workers):
        reader = Reader(
            str(folder), manifest, "train", columns, global_batch_size=32, rank=rank, workers=workers, seed=3
        )
        for batch in reader.epoch(Position()):
            jagged, other = (batch.ids, batch.sequences) if "ids" in tags else (batch.sequences, batch.ids)
            assert jagged is not None and other is not None and batch.keys is not None
            assert other.weights_or_none() is None
            for name in columns.ids if "ids" in tags else columns.sequences:
                ids, weights = jagged[name].to_dense(), jagged[name].to_dense_weights()
                for i, row in enumerate(batch.keys["row"].to_pylist()):
                    if name != "tags":
                        assert (weights[i] == 1).all() and len(weights[i]) == len(ids[i])
                    elif row is None:
                        assert len(weights[i]) == 0
                    else:
                        np.testing.assert_array_equal(ids[i].numpy(), rows.loc[row, name])
                        np.testing.assert_array_equal(weights[i].numpy(), rows.loc[row, ID_WEIGHTS + name])
                        seen += 1
    assert seen == len(rows) == 354


def test_without_weights_a_batch_has_none(tmp_path: Path) -> None:
    for batch in batches(new_run(tmp_path), 0, 1):
        assert batch.ids is not None and batch.ids.weights_or_none() is None
        assert batch.sequences is not None and batch.sequences.weights_or_none() is None


CASES = {"own": OWN, "own, sum": {**OWN, "pooling": "sum"}, "shared": SHARED}


@pytest.mark.parametrize("tags", CASES.values(), ids=CASES)
def test_a_step_of_two_workers_equals_a_step_of_one(
    tmp_path: Path, two_workers: WorkerPool, tags: dict[str, Any]
) -> None:
    experiment = new_run(tmp_path, training=SGD, features=features(tags))
    assert_a_step_of_two_workers_equals_a_step_of_one(experiment, two_workers)


@pytest.mark.parametrize("tags", CASES.values(), ids=CASES)
def test_a_sharded_step_equals_plain_pytorch(tmp_path: Path, tags: dict[str, Any]) -> None:
    experiment = new_run(tmp_path, training=SGD, features=features(tags))
    with one_worker() as worker:
        before, after = sharded_step(worker, experiment)
    expected = plain_step(experiment, before)
    assert after.keys() == expected.keys()
    for name, value in after.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("plan", PLANS[1:])
def test_predictions_do_not_depend_on_the_plan(tmp_path: Path, two_workers: WorkerPool, plan: str) -> None:
    reference = two_workers.run(predictions_of, new_run(tmp_path, features=features(OWN)))
    other = two_workers.run(predictions_of, synthetic.experiment(tmp_path, features=features(OWN, plan)))
    assert any(f"tags: {plan}" in line for line in other[0][0]), other[0][0]
    torch.testing.assert_close(interleaved(other), interleaved(reference), rtol=1e-5, atol=1e-6)


def test_a_resume_in_the_middle_is_exact(tmp_path: Path) -> None:
    assert_a_resume_in_the_middle_is_exact(tmp_path, features=features(OWN))
