"""The workload of the benchmarks: 26 categorical features with 100,000 ids each by a Zipf law, dim 16, two tasks,
batches of 4096; MMoE with 8 experts [256, 128] and towers [64] unless another trunk is requested.
"""

import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torchrec import KeyedJaggedTensor

from benchmarks.rounds import ROOT
from cluster.connect import connect
from examples.synthetic.generate import FIRST_DAY, Settings, generate
from models.inputs import ModelInputs
from pipeline.config.experiment import Experiment
from pipeline.config.load import parse_experiment
from pipeline.loading.batch import Batch
from pipeline.loading.position import Position
from pipeline.preprocess.job import preprocess
from pipeline.sharding.model_inputs import model_inputs
from pipeline.table.manifest import LABEL, SCENARIO, read_manifest

CATEGORICALS, IDS, DIM, BATCH, ZIPF = 26, 100_000, 16, 4096, 1.2
LONGEST = 50
MMOE = {"kind": "mmoe", "experts": 8, "hidden": [256, 128]}
NEVER = 10**9


def experiment(
    folder: Path,
    trunk: dict[str, Any] = MMOE,
    scenarios: int = 4,
    sequences: int = 0,
    precision: str = "fp32",
    batch: int = BATCH,
    **training: Any,
) -> Experiment:
    """The workload as an experiment over `folder`/log and `folder`/table, with the run in `folder`/run."""
    names = [f"c{i + 1:02d}" for i in range(CATEGORICALS)]
    features: list[dict[str, Any]] = [
        {"name": name, "column": name, "kind": "categorical", "ids": {"hash": IDS}, "dim": DIM} for name in names
    ]
    for i in range(sequences):
        seen = {"name": f"seen{i + 1}", "column": f"seen{i + 1}", "shares": names[i], "max_length": LONGEST}
        features.append({"kind": "sequence", **seen})
    data = {
        "name": "run",
        "output": str(folder),
        "logs": {"path": str(folder / "log"), "partition": "date", "splits": {"train": [FIRST_DAY, FIRST_DAY + 9]}},
        "table": {"path": str(folder / "table"), "lanes": 8},
        "features": features,
        "scenarios": [{"name": "channel", "column": "channel", "values": list(range(scenarios))}],
        "tasks": [
            {"name": "click", "column": "click", "kind": "binary"},
            {"name": "buy", "column": "buy", "kind": "binary", "after": "click"},
        ],
        "model": {
            "bottom": {"kind": "din", "target": names[0]} if sequences else {"kind": "concat"},
            "trunk": trunk,
            "head": {"kind": "towers", "hidden": [64], "conversion": "direct"},
        },
        "training": {"global_batch_size": batch, "precision": precision, "epochs": NEVER, **training},
        "checkpoint": {"every_steps": NEVER},
        "evaluation": {"batch_size": batch},
    }
    return parse_experiment(data, "benchmark")


def prepare(folder: Path, rows: int) -> None:
    """Makes the log and the feature table of the workload, unless they exist.

    This runs in a separate process, so that the Ray that it starts has ended before anything is measured.
    """
    if not (folder / "table" / "manifest.json").exists():
        command = [sys.executable, "-m", "benchmarks.workload", str(folder), str(rows)]
        subprocess.run(command, cwd=ROOT, check=True)  # noqa: S603


def make(folder: Path, rows: int) -> None:
    """The work of `prepare`."""
    generate(Settings(str(folder / "log"), rows, behaviours=0, ids=IDS, zipf=ZIPF))
    made = experiment(folder)
    preprocess(made, made.table_folder, overwrite=True, connect=connect)


def export(folder: Path, target: Path) -> None:
    """Writes the rows of the feature table as arrays `ids`, `labels` and `scenarios`, for the peers."""
    table = pq.read_table(folder / "table" / "train")
    target.mkdir(parents=True, exist_ok=True)
    names = [f"c{i + 1:02d}" for i in range(CATEGORICALS)]
    np.save(target / "ids.npy", np.stack([table[name].to_numpy() for name in names], axis=1))
    np.save(target / "labels.npy", np.stack([table[LABEL + task].to_numpy() for task in ("click", "buy")], axis=1))
    np.save(target / "scenarios.npy", table[SCENARIO + "channel"].to_numpy().astype(np.int64))


def inputs_of(made: Experiment) -> ModelInputs:
    """The inputs of the experiment's model, from its feature table."""
    return model_inputs(made, read_manifest(made.table_folder).table_rows)


def random_inputs(made: Experiment) -> ModelInputs:
    """The inputs of the experiment's model, without a feature table."""
    return model_inputs(made, {f"c{i + 1:02d}": IDS + 2 for i in range(CATEGORICALS)})


def random_batches(inputs: ModelInputs, scenarios: int, rows: int = BATCH) -> Iterator[Batch]:
    """Endless batches of random ids, without a table on disk. Ids follow the Zipf law, spread over the table's rows."""
    rng = np.random.default_rng(0)
    odds = np.cumsum(1 / np.arange(1, IDS + 1) ** ZIPF)

    def draw(table: int, number: int) -> np.ndarray:
        ranks = np.searchsorted(odds, rng.random(number) * odds[-1])
        return (ranks.astype(np.int64) * 2_654_435_761 % table).astype(np.int32)

    def keyed(features: tuple[Any, ...]) -> KeyedJaggedTensor | None:
        if not features:
            return None
        lengths = [
            rng.integers(0, feature.max_length + 1, rows) if feature.kind == "sequence" else np.ones(rows, np.int64)
            for feature in features
        ]
        values = [draw(inputs.table(f.table).rows, int(n.sum())) for f, n in zip(features, lengths, strict=True)]
        return KeyedJaggedTensor(
            keys=[feature.name for feature in features],
            values=torch.from_numpy(np.concatenate(values)),
            lengths=torch.from_numpy(np.concatenate(lengths).astype(np.int32)),
            stride=rows,
        )

    for step in count(1):
        labels = torch.from_numpy((rng.random((rows, len(inputs.tasks))) < 0.3).astype(np.float32))
        yield Batch(
            ids=keyed(inputs.pooled_features),
            sequences=keyed(inputs.jagged_features),
            numerics=torch.empty(rows, 0),
            labels=labels,
            scenarios=torch.from_numpy(rng.integers(0, scenarios, (rows, 1))),
            weights=torch.ones(rows),
            weight_total=torch.tensor(float(rows)),
            noise_keys=torch.from_numpy(rng.integers(2**62, size=rows)),
            position=Position(0, step),
        )


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]))
