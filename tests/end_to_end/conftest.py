"""A slice of the bundled KuaiRand logs, preprocessed once for all end-to-end runs."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.config.load import dump_experiment, load_experiment
from tests.commands import manygate

ROOT = Path(__file__).resolve().parents[2]
DAYS = ("20220425", "20220426", "20220504", "20220505")
ROWS = 600


def torchrun(*arguments: str) -> subprocess.Popen[str]:
    """Starts a command on two workers."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "jobs.cli"]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *arguments], cwd=ROOT, env=quiet, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Waits for the process to end with exit code 0; returns its output."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out + err
    return out


@pytest.fixture(scope="session")
def sliced(tmp_path_factory: pytest.TempPathFactory, ray_is_up: None) -> Path:
    """The experiment file over the slice, with its table made by `manygate preprocess`."""
    folder = tmp_path_factory.mktemp("kuairand")
    source = ROOT / "examples/kuairand"
    for day in DAYS:
        target = folder / f"log/date={day}/part-0.parquet"
        target.parent.mkdir(parents=True)
        pq.write_table(pq.ParquetFile(source / f"log/date={day}/part-0.parquet").read().slice(0, ROWS), target)
    experiment = load_experiment(
        source / "experiment.yaml",
        [
            "name=sliced",
            f"output={folder}/runs",
            f"logs.path={folder}/log",
            "logs.splits={train: [20220425, 20220426], valid: [20220504, 20220504], test: [20220505, 20220505]}",
            f"logs.joins.0.path={source}/user_features.parquet",
            f"logs.joins.1.path={source}/video_features.parquet",
            f"logs.joins.2.path={source}/user_history.parquet",
            "features.watched.max_length=5",
            "features.liked.max_length=5",
            "features.viewed_long.max_length=5",
            "training.global_batch_size=64",
            "training.log_every_steps=5",
            "training.validate_every_steps=10",
            "training.schedule.warmup_steps=5",
            "checkpoint={every_steps: 7, keep_last: 100}",
            "evaluation.batch_size=128",
        ],
    )
    file = folder / "experiment.yaml"
    file.write_text(dump_experiment(experiment))
    manygate("preprocess", str(file), check=0)
    return file
