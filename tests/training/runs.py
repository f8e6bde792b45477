"""Whole runs on the synthetic table, and readers of their output."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from pipeline.checkpoint.choice import CheckpointChoice
from pipeline.config.experiment import Experiment
from pipeline.training.run import train_on_worker
from pipeline.workers.worker import Worker
from tests import synthetic

Tensors = dict[str, torch.Tensor]


def run_on(worker: Worker, experiment: Experiment, resume: str = "auto") -> str:
    """The body of a training job, importable in a worker process."""
    return train_on_worker(worker, experiment, CheckpointChoice.parse(resume))


def new_run(folder: Path, **sections: Any) -> Experiment:
    """An experiment in its own folder, with its table written."""
    experiment = synthetic.experiment(folder, **sections)
    synthetic.write_table(Path(experiment.folder) / "table", experiment)
    return experiment


def continued(before: Experiment, folder: Path, step: int, **sections: Any) -> Experiment:
    """A copy of a run as it was right after the checkpoint of a step: without later checkpoints, with all log lines."""
    after = synthetic.experiment(folder, **sections)
    shutil.copytree(before.folder, after.folder)
    for checkpoint in (Path(after.folder) / "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    return after


def tensors(experiment: Experiment, step: int, scratch: Path) -> Tensors:
    """All tensors of a checkpoint, by their full names."""
    out = scratch / f"{step}.pt"
    dcp_to_torch_save(Path(experiment.folder) / f"checkpoints/step-{step:08d}/data", out)
    return dict(flat(torch.load(out, weights_only=False)))


def flat(value: Any, prefix: str = "") -> list[tuple[str, torch.Tensor]]:
    if isinstance(value, dict):
        return [pair for name, part in value.items() for pair in flat(part, f"{prefix}{name}/")]
    return [(prefix, value)] if torch.is_tensor(value) else []


def metrics(experiment: Experiment) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without the only number that depends on time."""
    lines = (Path(experiment.folder) / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        record.pop("samples_per_second", None)
    return records


def assert_identical(one: Tensors, two: Tensors) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name
