"""Reproduces the run in this folder with a checkout of the version that made it.

cd tests/old_runs/0.1.0 && PYTHONPATH=CHECKOUT python make.py EMPTY_FOLDER
"""

import os
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs import cli

HERE = Path(__file__).resolve().parent
ROWS = 100  # per day
KEPT = (8, 12)  # steps of the checkpoints to keep: one in the middle of the second epoch, and the last one


def write_logs() -> None:
    """Writes four days to `log`, and to `next_day` one day with new users, items and words."""
    for day in range(1, 6):
        rng = np.random.default_rng(day)
        users, items = (20, 30) if day < 5 else (26, 36)
        user, item = rng.integers(0, users, ROWS), rng.integers(0, items, ROWS)
        words = np.array(["red", "green", "blue", "old" if day < 5 else "new"])
        liked = np.sin(user) + np.cos(3 * item)
        click = rng.random(ROWS) < 1 / (1 + np.exp(-2 * liked))
        buy = click & (rng.random(ROWS) < 0.5)
        lists = [[[f"i{n}" for n in rng.integers(0, items, rng.integers(0, 6))] for _ in range(ROWS)] for _ in range(2)]
        columns = {
            "row": np.arange(1000 * day, 1000 * day + ROWS),
            "user": [int(n) if (day, row) != (2, 7) else None for row, n in enumerate(user)],  # one row is quarantined
            "item": [f"i{n}" if rng.random() > 0.05 else None for n in item],
            "device": rng.choice(["phone", "tablet", "television"], ROWS),
            "related": lists[0],
            "words": [",".join(rng.choice(words, rng.integers(1, 4))) for _ in range(ROWS)],
            "watched": lists[1],
            "price": np.round(rng.lognormal(1, 1, ROWS), 2),
            "age": [int(n) if rng.random() > 0.1 else None for n in rng.integers(10, 80, ROWS)],
            "tab": rng.integers(0, 3, ROWS),
            "place": rng.choice(["home", "search", "elsewhere"], ROWS, p=[0.6, 0.35, 0.05]),
            "click": click,
            "buy": buy,
            "spent": np.where(buy, np.round(np.exp(liked + rng.normal(size=ROWS)), 2), 0.0),
        }
        write(pa.table(columns), f"{'log' if day < 5 else 'next_day'}/day={day}/part-0.parquet")
    write(
        pa.table({"item": [f"i{n}" for n in range(36)], "rating": [float(n % 7) for n in range(36)]}), "items.parquet"
    )


def write(table: pa.Table, path: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd")


def manygate(*arguments: str) -> None:
    if cli.main(arguments) != 0:
        raise SystemExit(f"manygate {' '.join(arguments)} failed")


def main(folder: str) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one thread, so that the run is reproducible bit by bit
    shutil.copy(HERE / "experiment.yaml", folder)
    os.chdir(folder)
    write_logs()
    manygate("preprocess", "experiment.yaml")
    manygate("train", "experiment.yaml")
    manygate("evaluate", "experiment.yaml", "--checkpoint", "latest", "--split", "test")
    manygate("compare", "experiment.yaml", "--trunks", "aesm,shared_bottom", "--seeds", "0,1")
    kept = [f"step-{step:08d}" for step in KEPT]
    for unwanted in [path for path in Path("run/checkpoints").iterdir() if path.name not in kept]:
        shutil.rmtree(unwanted)
    for unwanted in ("run/compare", "run/tensorboard"):
        shutil.rmtree(unwanted)
    Path("run/compare.md").unlink()
    with tarfile.open("checkpoints.tar.xz", "w:xz") as packed:  # tensors are mostly zero: a tenth of the size
        for data in sorted(Path("run/checkpoints").glob("*/data")):
            packed.add(data)
            shutil.rmtree(data)


main(sys.argv[1])
