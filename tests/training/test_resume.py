"""A run that stops and resumes gives the same result as a run that never stopped."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import fs

from pipeline import storage
from pipeline.checkpoint import state_document
from pipeline.checkpoint.checks import changes
from pipeline.checkpoint.format import complete_checkpoints
from pipeline.config.experiment import Experiment
from pipeline.errors import UserError
from tests.training.runs import assert_identical, continued, metrics, new_run, run_on, tensors
from tests.workers import WorkerPool, one_worker

# 354 rows in batches of 32: 12 steps per epoch, 24 in all. Checkpoints at 5, 10, 12 (epoch end, best), 15, 20, 24.
SECTIONS: dict[str, Any] = {
    "checkpoint": {"every_steps": 5, "keep_last": 100},
    "training": {
        "schedule": {"warmup_steps": 4, "decay": "cosine"},
        "clip_norm": 1.0,
        "early_stopping": {"metric": "click.log_loss", "patience": 5},
    },
    "model": {"trunk": {"kind": "mmoe", "experts": 2, "hidden": [16], "dropout": 0.2}},
}


@pytest.fixture(scope="module")
def straight(two_workers: WorkerPool, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    experiment = new_run(tmp_path_factory.mktemp("straight"), **SECTIONS)
    assert two_workers.run(run_on, experiment) == ["finished", "finished"]
    return experiment


def test_checkpoints_are_where_they_are_due(straight: Experiment) -> None:
    names = {path.name for path in (Path(straight.folder) / "checkpoints").iterdir()}
    assert {f"step-{step:08d}" for step in (5, 10, 12, 15, 20, 24)} <= names


@pytest.mark.parametrize("step", [5, 12, 20])
def test_resume_is_exact(straight: Experiment, two_workers: WorkerPool, tmp_path: Path, step: int) -> None:
    """Mid-epoch, at an epoch boundary, in the second epoch: weights, moments, generators and metrics bit by bit."""
    resumed = continued(straight, tmp_path, step, **SECTIONS)
    two_workers.run(run_on, resumed)
    assert_identical(tensors(straight, 24, tmp_path), tensors(resumed, 24, tmp_path))
    assert metrics(resumed) == metrics(straight)


def test_what_workers_reserve_may_change(straight: Experiment, two_workers: WorkerPool, tmp_path: Path) -> None:
    cluster = {"placement": "spread", "gpus_per_worker": 2, "memory_per_worker": "1GiB", "memory_per_task": "1GiB"}
    resumed = continued(straight, tmp_path, 12, **SECTIONS, cluster=cluster)
    saved = complete_checkpoints(resumed.checkpoint_folder)[-1].state()
    assert changes(saved, dataclasses.replace(saved, experiment=resumed)) == []
    two_workers.run(run_on, resumed)
    assert_identical(tensors(straight, 24, tmp_path), tensors(resumed, 24, tmp_path))
    assert metrics(resumed) == metrics(straight)


def test_resume_of_a_resume_is_exact(straight: Experiment, two_workers: WorkerPool, tmp_path: Path) -> None:
    first = continued(straight, tmp_path / "first", 5, **SECTIONS)
    two_workers.run(run_on, first)
    second = continued(first, tmp_path / "second", 15, **SECTIONS)
    two_workers.run(run_on, second)
    assert_identical(tensors(straight, 24, tmp_path), tensors(second, 24, tmp_path))
    assert metrics(second) == metrics(straight)


def test_a_finished_run_does_nothing_more(straight: Experiment, two_workers: WorkerPool, tmp_path: Path) -> None:
    again = continued(straight, tmp_path, 24, **SECTIONS)
    before = tensors(again, 24, tmp_path)
    assert two_workers.run(run_on, again) == ["finished", "finished"]
    assert_identical(before, tensors(again, 24, tmp_path))
    assert metrics(again) == metrics(straight)


def test_two_workers_to_one_and_back(two_workers: WorkerPool, tmp_path: Path) -> None:
    """The same samples in the same global batches, so the same losses and optimizer moments up to rounding."""
    sections = {**SECTIONS, "model": {}}  # without dropout, whose masks depend on the number of workers
    straight = new_run(tmp_path / "straight", **sections)
    two_workers.run(run_on, straight)
    alone = continued(straight, tmp_path / "alone", 5, **sections)
    with one_worker() as worker:
        run_on(worker, alone)
    back = continued(alone, tmp_path / "back", 15, **sections)
    two_workers.run(run_on, back)
    expected = tensors(straight, 24, tmp_path)
    for other in (alone, back):
        found = tensors(other, 24, tmp_path)
        for name, value in expected.items():
            if not name.startswith("own/"):
                torch.testing.assert_close(found[name], value, rtol=2e-4, atol=2e-6, msg=name)
        losses = [r["tasks"]["click"]["loss"] for r in metrics(straight) if r["kind"] == "train"]
        again = [r["tasks"]["click"]["loss"] for r in metrics(other) if r["kind"] == "train"]
        assert again == pytest.approx(losses, rel=1e-4)


def test_one_worker_gives_the_same_run_as_two_from_the_first_step(two_workers: WorkerPool, tmp_path: Path) -> None:
    """Initial weights and samples do not depend on the number of workers."""
    two, one = new_run(tmp_path / "two"), new_run(tmp_path / "one")
    two_workers.run(run_on, two)
    with one_worker() as worker:
        run_on(worker, one)
    for a, b in zip(metrics(two), metrics(one), strict=True):
        assert a["step"] == b["step"]
        measure = "loss" if a["kind"] == "train" else "log_loss"
        assert a["tasks"]["click"][measure] == pytest.approx(b["tasks"]["click"][measure], rel=1e-4)


@pytest.mark.parametrize("loop", ["plain", "pipelined"])
def test_loops_agree_bit_by_bit(straight: Experiment, two_workers: WorkerPool, tmp_path: Path, loop: str) -> None:
    """The pipelined loop reads ahead and is interrupted by validation, and its results are still the same."""
    sections = {**SECTIONS, "training": {**SECTIONS["training"], "loop": loop}}
    other = continued(straight, tmp_path, 10, **sections)
    two_workers.run(run_on, other)
    assert_identical(tensors(straight, 24, tmp_path), tensors(other, 24, tmp_path))
    assert metrics(other) == metrics(straight)


def test_a_checkpoint_without_a_complete_marker_is_ignored(
    straight: Experiment, two_workers: WorkerPool, tmp_path: Path
) -> None:
    torn = continued(straight, tmp_path, 20, **SECTIONS)
    marker = Path(torn.folder) / "checkpoints/step-00000020/complete.json"
    marker.write_text(marker.read_text()[:4])  # cut off by a kill
    two_workers.run(run_on, torn)
    assert_identical(tensors(straight, 24, tmp_path), tensors(torn, 24, tmp_path))


def test_pruning_keeps_the_last_the_best_and_multiples_of_keep_every(two_workers: WorkerPool, tmp_path: Path) -> None:
    sections = {**SECTIONS, "checkpoint": {"every_steps": 3, "keep_last": 2, "keep_every": 9}}
    experiment = new_run(tmp_path, **sections)
    two_workers.run(run_on, experiment)
    folder = Path(experiment.folder) / "checkpoints"
    best = json.loads((folder / "step-00000024/state.json").read_text())["progress"]["best_step"]
    assert {path.name for path in folder.iterdir()} == {f"step-{step:08d}" for step in {9, 18, 21, 24, best}}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"training": {"seed": 1}}, "training.seed=0; the experiment has 1"),
        ({"training": {"global_batch_size": 64}}, "training.global_batch_size=32; the experiment has 64"),
        (
            {"model": {"trunk": {"kind": "mmoe", "experts": 3, "hidden": [16]}}},
            r"is of another model: model\.trunk\.experts: 2 -> 3",
        ),
        ({"model": {"trunk": {"kind": "shared_bottom", "hidden": [16]}}}, "is of another model: model.trunk"),
        ({"model": {"bottom": {"kind": "concat"}}}, "is of another model: model.bottom"),
        (
            {"model": {"head": {"kind": "towers", "hidden": [8], "conversion": "direct"}}},
            "conversion: .product. -> .direct",
        ),
        (
            {"training": {"dense_optimizer": {"kind": "sgd"}}},
            "training.dense_optimizer.kind=adam; the experiment has sgd",
        ),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    straight: Experiment, two_workers: WorkerPool, tmp_path: Path, sections: dict[str, Any], message: str
) -> None:
    merged = {**SECTIONS, **{k: {**SECTIONS.get(k, {}), **v} for k, v in sections.items()}}
    other = continued(straight, tmp_path, 12, **merged)
    before = metrics(other)
    with pytest.raises(UserError, match=message):
        two_workers.run(run_on, other)
    assert metrics(other) == before, "nothing was changed"


def test_a_checkpoint_of_another_table_is_refused(
    straight: Experiment, two_workers: WorkerPool, tmp_path: Path
) -> None:
    other = continued(straight, tmp_path, 12, **SECTIONS)
    manifest = Path(other.folder) / "table/manifest.json"
    data = json.loads(manifest.read_text())
    data["table_rows"]["user"] = 40
    manifest.write_text(json.dumps(data))
    with pytest.raises(UserError, match="has 50 rows for the embedding table 'user', the feature table 40 rows"):
        two_workers.run(run_on, other)


def test_a_train_split_of_other_files_is_refused(straight: Experiment, two_workers: WorkerPool, tmp_path: Path) -> None:
    other = continued(straight, tmp_path, 12, **SECTIONS)
    manifest = Path(other.folder) / "table/manifest.json"
    data = json.loads(manifest.read_text())
    data["partitions"][0]["lanes"][0][0]["bytes"] += 1
    manifest.write_text(json.dumps(data))
    with pytest.raises(UserError, match="was trained on partition 1, of which the feature table now has other files"):
        two_workers.run(run_on, other)


def test_a_resume_lists_what_has_changed_instead_of_exactly(
    straight: Experiment, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    features = straight.model_dump(mode="json")["features"]
    features[0]["sharding"] = "row_wise"
    tasks = straight.model_dump(mode="json")["tasks"]
    tasks[1] |= {"weight": 0.5, "positive_weight": 5.0, "focal": 2.0}
    training = {**SECTIONS["training"], "clip_norm": 2.0}
    sections = {**SECTIONS, "training": training, "features": features, "tasks": tasks}
    with caplog.at_level("INFO", "pipeline"), one_worker() as worker:
        run_on(worker, continued(straight, tmp_path, 20, **sections))
    assert (
        "not bit by bit: workers: 2 -> 1; training.clip_norm: 1.0 -> 2.0; weight of buy: 1.0 -> 0.5; "
        "positive_weight of buy: 1.0 -> 5.0; focal of buy: 0.0 -> 2.0; "
        'sharding of user: null -> "row_wise".' in caplog.text
    )


def test_resuming_from_an_earlier_checkpoint_deletes_later_ones(
    straight: Experiment, two_workers: WorkerPool, tmp_path: Path
) -> None:
    """The abandoned branch must not count as the latest, nor make pruning delete the checkpoint that was just saved."""
    sections = {**SECTIONS, "checkpoint": {"every_steps": 5, "keep_last": 1}}
    again = continued(straight, tmp_path, 24, **sections)
    folder = Path(again.folder) / "checkpoints"
    two_workers.run(run_on, again, str(folder / "step-00000010"))
    assert_identical(tensors(straight, 24, tmp_path), tensors(again, 24, tmp_path))
    best = json.loads((folder / "step-00000024/state.json").read_text())["progress"]["best_step"]
    assert {path.name for path in folder.iterdir()} == {f"step-{step:08d}" for step in {24, best}}


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


DAMAGES = [
    (Path.unlink, "data/__1_0.distcp", "is missing"),
    (cut_off, "data/.metadata", "were written"),
    (flip_a_bit, "data/__0_0.distcp", "has other content than was written"),
    (flip_a_bit, "state.json", "has other content than was written"),
]


@pytest.mark.parametrize(("damage", "file", "message"), DAMAGES)
def test_a_damaged_checkpoint_is_skipped(
    straight: Experiment,
    two_workers: WorkerPool,
    tmp_path: Path,
    damage: Callable[[Path], None],
    file: str,
    message: str,
) -> None:
    """The run resumes from the checkpoint before it and ends the same. If named by path, a damaged one is refused."""
    other = continued(straight, tmp_path, 12, **SECTIONS)
    folder = Path(other.folder) / "checkpoints/step-00000012"
    damage(folder / file)
    with pytest.raises(UserError, match=f"step-00000012 is damaged: {file} .*{message}"):
        two_workers.run(run_on, other, str(folder))
    two_workers.run(run_on, other)
    assert_identical(tensors(straight, 24, tmp_path), tensors(other, 24, tmp_path))
    assert metrics(other) == metrics(straight)


def test_no_run_starts_over_if_all_checkpoints_are_damaged(
    straight: Experiment, two_workers: WorkerPool, tmp_path: Path
) -> None:
    other = continued(straight, tmp_path, 10, **SECTIONS)
    for state in (Path(other.folder) / "checkpoints").glob("step-*/state.json"):
        cut_off(state)
    with pytest.raises(UserError, match="None of the 2 checkpoints .* can be used; .*step-00000010 is damaged: state"):
        two_workers.run(run_on, other)


def test_an_auc_counts_no_histograms_of_other_bins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Resumed at step 6, between the log lines of steps 4 and 8: the loss is of four steps, the AUC of the last two."""
    sections = {"training": {"max_steps": 8}, "checkpoint": {"every_steps": 6}}
    whole = new_run(tmp_path / "whole", **sections)
    in_twos = new_run(tmp_path / "in_twos", training={"max_steps": 8, "log_every_steps": 2})
    with one_worker() as worker:
        run_on(worker, in_twos)
        with monkeypatch.context() as earlier:
            earlier.setattr(state_document, "VERSION", 1)
            run_on(worker, whole)
        resumed = continued(whole, tmp_path / "resumed", 6, **sections)
        with caplog.at_level("INFO", "pipeline"):
            run_on(worker, resumed)
    assert "the first one that is logged covers only the steps after this checkpoint" in caplog.text
    (last, of_four, of_two) = (
        next(record["tasks"] for record in metrics(run) if (record["kind"], record["step"]) == ("train", 8))
        for run in (resumed, whole, in_twos)
    )
    for task in ("click", "buy"):
        assert last[task] == {"loss": of_four[task]["loss"], "auc": of_two[task]["auc"]} != of_four[task]


def test_checkpoints_on_an_object_store(tmp_path: Path) -> None:
    """A run is saved to and resumed from a filesystem without folders, renames and appends."""
    experiment = new_run(tmp_path, **SECTIONS)
    remote = experiment.model_copy(update={"output": f"memory://{tmp_path.name}"})
    filesystem, path = storage.resolve(remote.folder)
    fs.copy_files(experiment.folder, path, destination_filesystem=filesystem)
    first = remote.model_copy(update={"training": remote.training.model_copy(update={"max_steps": 7})})
    with one_worker() as worker:
        run_on(worker, first)
        run_on(worker, remote)
        run_on(worker, experiment)
    saved = complete_checkpoints(storage.join(remote.folder, "checkpoints"))
    assert [checkpoint.step for checkpoint in saved] == [5, 7, 10, 12, 15, 20, 24]
    assert len(storage.read_text(storage.join(remote.folder, "metrics.jsonl")).splitlines()) > 6
