"""Training windows: a run continues with later days, with larger tables, and with more scenarios and tasks."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.checkpoint.choice import LATEST
from pipeline.config.experiment import Experiment
from pipeline.errors import UserError
from pipeline.scoring.checkpoint_evaluation import evaluate_on_worker
from tests import synthetic
from tests.training.runs import assert_identical, continued, metrics, run_on, tensors
from tests.workers import WorkerPool, one_worker

DAYS = {"1": 203, "2": 151, "3": 90, "4": 120, "5": 90, "6": 90}
SECTIONS: dict[str, Any] = {
    "training": {"schedule": {"warmup_steps": 3, "decay": "linear", "final": 0.1}, "log_every_steps": 3},
    "checkpoint": {"every_steps": 4, "keep_last": 100},
}


SPLITS_TO_3 = {"train": [1, 3], "valid": [5, 5], "test": [6, 6]}


def with_days(folder: Path, first: int, last: int, users: int = synthetic.USERS, **sections: Any) -> Experiment:
    """The experiment of a folder when its train split has these days, with its table written."""
    splits = {"train": [first, last], "valid": [5, 5], "test": [6, 6]}
    experiment = synthetic.experiment(folder, logs={"splits": splits}, **{**SECTIONS, **sections})
    synthetic.write_table(Path(experiment.folder) / "table", experiment, DAYS, users, seen={"1": 30, "2": 30})
    return experiment


def train(experiment: Experiment) -> str:
    with one_worker() as worker:
        return run_on(worker, experiment)


def progress(experiment: Experiment) -> dict[str, Any]:
    last = max((Path(experiment.folder) / "checkpoints").glob("step-*"))
    state: dict[str, Any] = json.loads((last / "state.json").read_text())["progress"]
    return state


def test_new_days_are_trained_on_alone_and_the_schedule_starts_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Days 1 and 2 have 354 rows: 12 steps per epoch, 24 in all. Days 3 and 4 have 210: 7 per epoch, 14 in all."""
    train(with_days(tmp_path, 1, 2))
    with caplog.at_level(logging.INFO, "pipeline"):
        train(with_days(tmp_path, 1, 4))
    assert "Continuing with the new partitions of the train split: 3, 4; the schedule starts again." in caplog.text
    last = progress(with_days(tmp_path, 1, 4))
    assert last["step"] == 38
    assert last["span"]["first_step"] == 24 and list(last["span"]["partitions"]) == ["3", "4"]
    assert list(last["earlier"]) == ["1", "2"]
    factors = {r["step"]: r["learning_rate_factor"] for r in metrics(with_days(tmp_path, 1, 4)) if r["kind"] == "train"}
    assert factors[24] == pytest.approx(0.1 + 0.9 * (1 - 20 / 21))
    assert factors[27] == 1.0  # the last of three steps of warm-up
    before = metrics(with_days(tmp_path, 1, 4))
    assert train(with_days(tmp_path, 1, 4)) == "finished"
    assert metrics(with_days(tmp_path, 1, 4)) == before, "a third call has nothing left to do"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """A run over days 1 and 2, and then over days 3 and 4."""
    folder = tmp_path_factory.mktemp("whole")
    train(with_days(folder, 1, 2))
    experiment = with_days(folder, 1, 4)
    train(experiment)
    return experiment


@pytest.mark.parametrize("step", [12, 24, 28])
def test_a_run_that_was_stopped_finishes_its_days_before_it_takes_new_ones(
    whole: Experiment, tmp_path: Path, step: int
) -> None:
    """Stopped in the first window, at its end, or in the second window: the final result is the same bit by bit."""
    sections = {"logs": {"splits": {"train": [1, 4], "valid": [5, 5], "test": [6, 6]}}, **SECTIONS}
    stopped = continued(whole, tmp_path / "other", step, **sections)
    train(stopped)
    assert_identical(tensors(whole, 38, tmp_path), tensors(stopped, 38, tmp_path))
    assert metrics(whole) == metrics(stopped)


def test_finished_days_may_leave_the_train_split_and_unfinished_days_may_not(tmp_path: Path) -> None:
    train(with_days(tmp_path / "a", 1, 2))
    assert train(with_days(tmp_path / "a", 2, 3)) == "finished"
    assert list(progress(with_days(tmp_path / "a", 2, 3))["span"]["partitions"]) == ["3"]
    longer = {**SECTIONS, "training": {**SECTIONS["training"], "epochs": 3, "max_steps": 20}}
    train(with_days(tmp_path / "b", 1, 2, **SECTIONS | {"training": {**SECTIONS["training"], "max_steps": 8}}))
    with pytest.raises(UserError, match="in the middle of training on partition 1, which is no longer in the train"):
        train(with_days(tmp_path / "b", 2, 3, **longer))


@pytest.mark.parametrize("loop", ["plain", "pipelined"])
def test_loops_agree_over_several_windows(tmp_path: Path, loop: str) -> None:
    """After a window that ends in the middle of an epoch, no batch that was read ahead is left over."""
    sections = {**SECTIONS, "training": {**SECTIONS["training"], "max_steps": 5, "loop": loop}}
    plain = with_days(tmp_path / "plain", 1, 2, **SECTIONS | {"training": {**SECTIONS["training"], "max_steps": 5}})
    first = with_days(tmp_path / "first", 1, 2, **sections)
    for run in (plain, first):
        train(run)
    plain = with_days(tmp_path / "plain", 1, 3, **SECTIONS | {"training": {**SECTIONS["training"], "max_steps": 5}})
    train(plain)
    # Both windows in one process: stopped in the first one, when the table already has the days of the second.
    both = continued(first, tmp_path / "both", 4, logs={"splits": SPLITS_TO_3}, **sections)
    with_days(tmp_path / "both", 1, 3, **sections)
    train(both)
    assert progress(both)["position"] == {"epoch": 1, "step": 2}
    assert_identical(tensors(plain, 10, tmp_path), tensors(both, 10, tmp_path))


def test_the_search_for_the_best_step_starts_again_in_each_window(tmp_path: Path) -> None:
    stopping = {"early_stopping": {"metric": "click.log_loss", "patience": 1}, "sparse_optimizer": {"lr": 3.0}}
    sections = {**SECTIONS, "training": {**SECTIONS["training"], **stopping, "epochs": 50}}
    assert train(with_days(tmp_path, 1, 2, **sections)) == "stopped early"
    first = progress(with_days(tmp_path, 1, 2, **sections))
    assert train(with_days(tmp_path, 1, 3, **sections)) == "stopped early"
    second = progress(with_days(tmp_path, 1, 3, **sections))
    assert first["best_step"] <= first["step"] < second["best_step"] <= second["step"]


def test_tables_grow_and_keep_old_rows_and_moments(
    tmp_path: Path, two_workers: WorkerPool, caplog: pytest.LogCaptureFixture
) -> None:
    """From 30 to 50 users, on one worker and on two: old rows are kept, new rows are initialised, their sums are 0."""
    old = with_days(tmp_path / "one", 1, 2, users=30)
    train(old)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    short = {**SECTIONS, "training": {**SECTIONS["training"], "max_steps": 1}, "checkpoint": {"every_steps": 1}}
    before = tensors(old, 24, tmp_path)
    with caplog.at_level(logging.INFO, "pipeline"):
        train(with_days(tmp_path / "one", 1, 3, **short))
    assert "user: 30 -> 50 rows" in caplog.text
    two_workers.run(run_on, with_days(tmp_path / "two", 1, 3, **short))
    one, two = (tensors(with_days(tmp_path / name, 1, 3), 25, tmp_path) for name in ("one", "two"))
    for name, value in one.items():
        if "own" not in name:
            torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-6, msg=name)
    (weight,) = [name for name in before if name.startswith("model/") and name.endswith("user.weight/")]
    untouched = (one[weight][:30] == before[weight]).all(1)
    assert 5 < untouched.sum() < 30, "one step reaches some users"
    (momentum,) = [name for name in before if "user.momentum1" in name]
    assert one[momentum].shape == (50,)
    assert torch.equal(one[momentum][:30][untouched], before[momentum][untouched])
    assert (one[momentum][30:] == 0).any() and (one[weight][30:] != 0).all()


def test_a_column_wise_table_that_has_grown_is_refused(tmp_path: Path, two_workers: WorkerPool) -> None:
    """It has one row-wise moment per row and shard, shard after shard, so they would be loaded into wrong rows."""
    features = with_days(tmp_path / "x", 1, 2).model_dump(mode="json")["features"]
    features[0] |= {"dim": 256, "sharding": "column_wise"}
    sections = {**SECTIONS, "features": features, "training": {"max_steps": 4}, "model": {"bottom": {"kind": "concat"}}}
    two_workers.run(run_on, with_days(tmp_path, 1, 2, users=30, **sections))
    with pytest.raises(UserError, match=r"user.momentum1: \(60,\) in the checkpoint, \(100,\) in the model"):
        two_workers.run(run_on, with_days(tmp_path, 1, 3, **sections))


GROWN = {
    "scenarios": [{"name": "tab", "column": "s", "values": [0, 1, 7]}],
    "tasks": [
        {"name": "click", "column": "c", "kind": "binary"},
        {"name": "share", "column": "sh", "kind": "binary", "after": "click"},
        {"name": "buy", "column": "b", "kind": "binary", "after": "click"},
        {"name": "value", "column": "v", "kind": "continuous", "after": "buy"},
    ],
}
TRUNKS = [
    {"kind": "mmoe", "experts": 2, "hidden": [16]},
    {"kind": "aesm", "experts": 3, "hidden": [16]},
    {"kind": "star", "hidden": [16]},
]


@pytest.mark.parametrize("trunk", TRUNKS, ids=lambda trunk: trunk["kind"])
def test_a_scenario_and_a_task_are_added_to_a_trained_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, trunk: dict[str, Any]
) -> None:
    """Old tensors are kept, Adam's moments included; new ones are logged. The run trains on all days again."""
    sections = {**SECTIONS, "model": {"trunk": trunk}}
    before = with_days(tmp_path, 1, 2, **sections)
    train(before)
    old = tensors(before, 24, tmp_path)
    with caplog.at_level(logging.INFO, "pipeline"):
        one_step = {**sections["training"], "max_steps": 1, "dense_optimizer": {"lr": 1e-12}}
        after = with_days(tmp_path, 1, 2, **{**sections, **GROWN, "training": one_step})
        with one_worker() as worker, pytest.raises(UserError, match="does not contain tab=7, task share"):
            evaluate_on_worker(worker, after, LATEST, "test")
        assert train(after) == "finished"
    assert "grown by tab=7, task share" in caplog.text
    assert "dense.model.head.towers.share.0.0.weight: new" in caplog.text
    new = tensors(after, 25, tmp_path)
    dense = [name for name in old if name.startswith("model/dense") and old[name].is_floating_point()]
    assert len(dense) > 8
    for name in dense:
        if old[name].shape == new[name].shape:
            torch.testing.assert_close(new[name], old[name], rtol=0, atol=1e-9, msg=name)
    if trunk["kind"] == "aesm":  # so that the new gates try the experts
        step = "model/dense.model.trunk.step/"
        assert "dense.model.trunk.step: starts again" in caplog.text
        assert (old[step].item(), new[step].item()) == (24, 1)
    moments = [name for name in old if "exp_avg_sq" in name and "towers/click" in name.replace(".", "/")]
    for name in moments:
        torch.testing.assert_close(new[name], old[name], rtol=0.1, atol=1e-3, msg=name)
    assert moments and any(old[name].shape != new[name].shape for name in dense)
    with one_worker() as worker:
        evaluation = evaluate_on_worker(worker, after, LATEST, "test")
    assert evaluation is not None and list(evaluation["tasks"]) == [
        *("click", "share", "buy", "value"),
        *("share_given_click", "buy_given_click"),
    ]


def test_a_task_after_the_core_task_does_not_become_the_core(tmp_path: Path) -> None:
    """The default core task is the last task: a new last task would change the gradients of all others."""
    last = {"name": "share", "column": "sh", "kind": "binary", "after": "click"}
    tasks = [task for task in GROWN["tasks"] if task["name"] != "share"]
    model: dict[str, Any] = {"bottom": {"kind": "concat"}, "trunk": {"kind": "htlnet", "hidden": [16]}}
    short = {"training": {"max_steps": 1}, "tasks": tasks}
    train(with_days(tmp_path, 1, 2, **{**short, "model": model}))
    longer = {**short, "tasks": [*tasks, last]}
    with pytest.raises(UserError, match='objective.gradients.core: "value" -> "share"'):
        train(with_days(tmp_path, 1, 2, **{**longer, "model": model}))
    named = {**model, "objective": {"gradients": {"kind": "core", "core": "value"}}}
    assert train(with_days(tmp_path, 1, 2, **{**longer, "model": named})) == "finished"


def test_a_model_does_not_shrink(tmp_path: Path) -> None:
    train(with_days(tmp_path, 1, 2, **GROWN))
    with pytest.raises(UserError, match="is of another model: scenarios.tab.values: .*; tasks.share: removed"):
        train(with_days(tmp_path, 1, 2))
