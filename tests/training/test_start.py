"""A run starts where the labels of its table are, and only a run that starts."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.config.experiment import Experiment
from pipeline.preprocess.content import count_labels
from pipeline.table.content import Content
from pipeline.table.manifest import LABEL, read_manifest, write_manifest
from pipeline.training.run import fresh_state
from pipeline.workers.worker import Worker
from tests import synthetic
from tests.training.runs import assert_identical, continued, metrics, new_run, run_on, tensors
from tests.workers import WorkerPool, one_worker

SHARE = {"name": "share", "column": "sh", "kind": "binary", "after": "click"}


def with_counts(experiment: Experiment) -> Experiment:
    """The experiment, whose table gets the counts that preprocessing makes."""
    manifest, partitions = read_manifest(experiment.table_folder), []
    for partition in manifest.partitions:
        paths = [file.path for lane in partition.lanes for file in lane]
        table = pa.concat_tables([pq.ParquetFile(Path(experiment.table_folder) / path).read() for path in paths])
        tasks = {
            task.name: count_labels(task, table, np.array(table[LABEL + task.name]), 0) for task in experiment.tasks
        }
        partitions.append(replace(partition, content=Content({}, tasks, [])))
    write_manifest(experiment.table_folder, replace(manifest, partitions=partitions))
    return experiment


def train_labels(experiment: Experiment, task: str) -> torch.Tensor:
    files = sorted((Path(experiment.table_folder) / "train").rglob("*.parquet"))
    return torch.cat([torch.from_numpy(pq.ParquetFile(f).read([LABEL + task])[0].to_numpy().copy()) for f in files])


def first_biases(worker: Worker, experiment: Experiment) -> dict[str, float]:
    """The first output bias of each task in a new run."""
    state = fresh_state(experiment, read_manifest(experiment.table_folder), worker)
    weights = state.model.module.state_dict()
    return {task.name: float(weights[f"dense.model.head.towers.{task.name}.1.bias"][0]) for task in experiment.tasks}


def log_odds(positives: float, rows: int) -> float:
    return math.log((positives + 0.5) / (rows - positives + 0.5))


def expected_biases(experiment: Experiment) -> dict[str, float]:
    """With `product`: P(click), P(buy | click), and the mean value of all rows."""
    click, buy, value = (train_labels(experiment, task) for task in ("click", "buy", "value"))
    return {
        "click": log_odds(float(click.sum()), len(click)),
        "buy": log_odds(float((buy * click).sum()), int(click.sum())),
        "value": float(value.mean()),
    }


def assert_near(found: dict[str, float], expected: dict[str, float]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_every_worker_starts_at_the_counted_labels(tmp_path: Path, two_workers: WorkerPool) -> None:
    experiment = with_counts(new_run(tmp_path))
    one, two = two_workers.run(first_biases, experiment)
    assert one == two
    assert_near(one, expected_biases(experiment))


def test_the_first_losses_are_near_the_entropy_of_the_labels(tmp_path: Path) -> None:
    short: dict[str, Any] = {"training": {"max_steps": 1, "log_every_steps": 1}}
    losses = []
    for folder in ("without", "with"):
        experiment = new_run(tmp_path / folder, **short)
        with one_worker() as worker:
            run_on(worker, with_counts(experiment) if folder == "with" else experiment)
        losses.append(metrics(experiment)[0]["tasks"]["buy"]["loss"])
    rate = float(train_labels(experiment, "buy").mean())
    entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
    assert abs(losses[1] - entropy) < abs(losses[0] - entropy) and losses[1] < 1.15 * entropy


def test_a_resumed_run_does_not_read_the_counts(tmp_path: Path) -> None:
    straight = with_counts(new_run(tmp_path / "straight"))
    with one_worker() as worker:
        run_on(worker, straight)
        resumed = continued(straight, tmp_path / "resumed", 12)
        manifest = read_manifest(resumed.table_folder)
        without = [replace(partition, content=None) for partition in manifest.partitions]
        write_manifest(resumed.table_folder, replace(manifest, partitions=without))
        run_on(worker, resumed)
    assert_identical(tensors(straight, 24, tmp_path), tensors(resumed, 24, tmp_path))


def test_a_new_task_of_a_grown_model_starts_at_its_labels(tmp_path: Path) -> None:
    before = new_run(tmp_path)
    with one_worker() as worker:
        run_on(worker, before)
    old = tensors(before, 24, tmp_path)
    tasks = [task.model_dump(mode="json") for task in before.tasks]
    frozen = {"epochs": 2, "max_steps": 1, "dense_optimizer": {"lr": 1e-12}}
    after = synthetic.experiment(tmp_path, tasks=[tasks[0], SHARE, *tasks[1:]], training=frozen)
    synthetic.write_table(Path(after.table_folder), after)
    with one_worker() as worker:
        assert run_on(worker, with_counts(after)) == "finished"
    new = tensors(after, 25, tmp_path)
    click, share = train_labels(after, "click"), train_labels(after, "share")
    name = "model/dense.model.head.towers.{}.1.bias/"
    expected = log_odds(float((share * click).sum()), int(click.sum()))
    torch.testing.assert_close(new[name.format("share")].item(), expected, rtol=1e-4, atol=1e-6)
    for task in ("click", "buy", "value"):
        torch.testing.assert_close(new[name.format(task)], old[name.format(task)], rtol=0, atol=1e-9)
