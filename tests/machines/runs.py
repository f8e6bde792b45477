"""The experiment of these tests: a project folder as a user has it, and logs in an object store."""

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from manygate_guard import PACKAGES
from pipeline.config.load import dump_experiment, load_experiment
from tests.machines.ray_cluster import RECORDER, ROOT, Command
from tests.object_store import ObjectStore

SOURCE = ROOT / "examples/kuairand"
NAME = "machines"
SPLITS = {"train": ("20220425", "20220426"), "valid": ("20220504",), "test": ("20220505",)}
SIDE_TABLES = ("user_features", "video_features", "user_history")
ROWS = 600  # of each day
BATCH, EPOCHS = 64, 5
LAST = -(-2 * ROWS // BATCH) * EPOCHS
SAVED_EVERY = 10
COMMAND_S = 400  # for a command that hangs
FILE = "experiment.yaml"


def write_project(folder: Path, store: ObjectStore) -> None:
    """Writes what a user has in a project folder: the code and an experiment. Its logs are put into the store."""
    for day in [day for days in SPLITS.values() for day in days]:
        rows = pq.ParquetFile(SOURCE / f"log/date={day}/part-0.parquet").read().slice(0, ROWS)
        put_parquet(store, f"log/date={day}/part-0.parquet", rows)
    for name in SIDE_TABLES:
        store.put(f"side/{name}.parquet", (SOURCE / f"{name}.parquet").read_bytes())
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("manygate.py", "manygate_guard.py", "pyproject.toml"):
        shutil.copy(ROOT / file, folder)
    splits = ", ".join(f"{name}: [{days[0]}, {days[-1]}]" for name, days in SPLITS.items())
    keys = (
        f"name={NAME}",
        f"output={store.uri('runs')}",
        f"logs.path={store.uri('log')}",
        f"logs.splits={{{splits}}}",
        *(f"logs.joins.{i}.path={store.uri(f'side/{name}.parquet')}" for i, name in enumerate(SIDE_TABLES)),
        "table.lanes=4",
        *(f"features.{name}.max_length=5" for name in ("watched", "liked", "viewed_long")),
        "model.trunk={kind: mmoe, experts: 4, hidden: [32]}",
        # Slow learning, so that differences of rounding do not grow.
        "training.dense_optimizer={kind: adam, lr: 0.0002}",
        "training.sparse_optimizer={kind: rowwise_adagrad, lr: 0.01}",
        "training.device=cpu",
        f"training.global_batch_size={BATCH}",
        f"training.epochs={EPOCHS}",
        "training.early_stopping=null",
        "training.log_every_steps=1",
        f"training.validate_every_steps={LAST}",
        "training.schedule.warmup_steps=5",
        f"checkpoint={{every_steps: {SAVED_EVERY}, keep_last: 3}}",
        "evaluation.batch_size=128",
    )
    (folder / FILE).write_text(dump_experiment(load_experiment(SOURCE / "experiment.yaml", keys)))


def put_parquet(store: ObjectStore, key: str, rows: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink)
    store.put(key, sink.getvalue().to_pybytes())


def run_here(project: Path, folder: Path, environment: Mapping[str, str], *arguments: str) -> None:
    """Runs a command on this host to its end, without a cluster, into a folder; records what it trains on."""
    records = folder / "records"
    records.mkdir(exist_ok=True)
    recording = {"PYTHONPATH": str(RECORDER), "MANYGATE_RECORDS": str(records), "RAY_ADDRESS": "local"}
    command = [sys.executable, "-m", "jobs.cli", *arguments, f"output={folder}"]
    running = Command(command, project, {**environment, **recording}, folder / f"{arguments[0]}.log")
    assert running.end(COMMAND_S) == 0, running.output()


def stored(store: ObjectStore, prefix: str) -> dict[str, bytes]:
    """The objects below a prefix, by the rest of their names."""
    keys = [key for key in store.all_keys() if key.startswith(f"{prefix}/") and not key.endswith("/")]
    return {key.removeprefix(f"{prefix}/"): store.content(key) for key in keys}


def on_disk(folder: Path) -> dict[str, bytes]:
    """The files below a folder, by their paths in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
