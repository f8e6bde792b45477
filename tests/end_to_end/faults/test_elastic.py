"""A run on 1, 2 and 4 workers, in any order and under different sharding plans, is the same up to rounding."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.experiment import Experiment
from tests.training.runs import continued, metrics, new_run, run_on, tensors
from tests.workers import WorkerPool, one_worker

# 12 steps per epoch, 24 in all, saved every 5. Each random draw and each computation over rows is in one of the models.
MODELS: dict[str, dict[str, Any]] = {
    "aesm": {"trunk": {"kind": "aesm", "experts": 3, "hidden": [16], "noise": 0.5}},
    "star": {"trunk": {"kind": "star", "hidden": [16]}},
    "htlnet": {
        "trunk": {"kind": "htlnet", "hidden": [16]},
        "objective": {"gradients": {"kind": "core"}},
        "bottom": {"kind": "concat"},
    },
}
LAST = 24
Run = Callable[[Experiment], None]


@pytest.fixture(scope="module")
def run_with(two_workers: WorkerPool, four_workers: WorkerPool) -> dict[int, Run]:
    """Number of workers -> a function that trains a run on them to its end."""

    def alone(experiment: Experiment) -> None:
        with one_worker() as worker:
            run_on(worker, experiment)

    def on(pool: WorkerPool) -> Run:
        return lambda experiment: pool.run(run_on, experiment) and None

    return {1: alone, 2: on(two_workers), 4: on(four_workers)}


def sections(model: str, sharding: str | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "model": MODELS[model],
        "checkpoint": {"every_steps": 5, "keep_last": 100},
        "training": {"log_every_steps": 1},
    }
    if sharding is not None:
        ids = {"ids": {"hash": 48}, "dim": 8, "sharding": sharding}
        found["features"] = [
            {"name": "user", "column": "u", "kind": "categorical", **ids},
            {"name": "item", "column": "i", "kind": "categorical", "ids": {"hash": 28}, "dim": 8, "sharding": sharding},
            {"name": "tags", "column": "t", "kind": "multivalued", "ids": {"hash": 10}, "dim": 4},
            {"name": "watched", "column": "w", "kind": "sequence", "shares": "item", "max_length": 6},
            {"name": "age", "column": "a", "kind": "numeric", "encode": {"standardize": "identity"}},
        ]
    return found


def losses(experiment: Experiment) -> list[float]:
    records = [record for record in metrics(experiment) if record["kind"] == "train"]
    return [task["loss"] for record in records for task in record["tasks"].values()]


def assert_same(one: Experiment, other: Experiment, scratch: Path) -> None:
    """The same losses at every step, and the same weights and moments at the end."""
    assert len(losses(one)) == 3 * LAST
    assert losses(other) == pytest.approx(losses(one), rel=2e-4)
    expected, found = tensors(one, LAST, scratch), tensors(other, LAST, scratch)
    shared = {name for name in expected if not name.startswith("own/")}
    assert shared == {name for name in found if not name.startswith("own/")}
    for name in shared:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.fixture(scope="module")
def alone(run_with: dict[int, Run], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Experiment]:
    """The run of each model on one worker."""
    runs = {model: new_run(tmp_path_factory.mktemp(model), **sections(model)) for model in MODELS}
    for run in runs.values():
        run_with[1](run)
    return runs


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("workers", [2, 4])
def test_a_seed_gives_the_same_run_from_the_first_step(
    run_with: dict[int, Run], alone: dict[str, Experiment], tmp_path: Path, model: str, workers: int
) -> None:
    """Initial rows, sample order, gate noise, moments and inner products of gradients do not depend on the workers."""
    together = new_run(tmp_path, **sections(model))
    run_with[workers](together)
    assert_same(alone[model], together, tmp_path)


@pytest.mark.parametrize("order", [(1, 4, 2), (4, 2, 1), (2, 1, 4)])
def test_a_run_continues_on_other_numbers_of_workers(
    run_with: dict[int, Run], alone: dict[str, Experiment], tmp_path: Path, order: tuple[int, int, int]
) -> None:
    """Five steps on one number of workers, ten more on another, the rest on a third, each under another plan."""
    plans = ["row_wise", None, "table_wise"]
    before = new_run(tmp_path / "0", **sections("aesm", plans[0]))
    run_with[order[0]](before)
    for number, (workers, step) in enumerate(zip(order[1:], (5, 15), strict=True), start=1):
        after = continued(before, tmp_path / str(number), step, **sections("aesm", plans[number]))
        run_with[workers](after)
        before = after
    assert_same(alone["aesm"], before, tmp_path)


def test_noise_matters_and_another_seed_is_another_run(
    run_with: dict[int, Run], alone: dict[str, Experiment], tmp_path: Path
) -> None:
    """Shows that the tests above can fail: without noise, or with another seed, losses differ."""
    runs = {}
    for name, change in (("quiet", {"noise": 0.0}), ("b", {})):
        model = {"model": {"trunk": {**MODELS["aesm"]["trunk"], **change}}}
        training = {"training": {"log_every_steps": 1, "seed": 1 if name == "b" else 0}}
        runs[name] = new_run(tmp_path / name, **{**sections("aesm"), **model, **training})
        run_with[1](runs[name])
    for other in runs.values():
        assert losses(alone["aesm"])[3:] != pytest.approx(losses(other)[3:], rel=1e-3)
