"""Small logs with every kind of column, and helpers that read logs and tables."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.experiment import Experiment
from pipeline.config.load import parse_experiment
from pipeline.table.manifest import Manifest

DAYS = ["20240101", "20240102", "20240103", "20240104"]

LOG_SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "user": pa.float64(),  # as pandas writes integers with nulls
        "item": pa.string(),
        "flag": pa.bool_(),
        "price": pa.float64(),
        "visits": pa.int32(),
        "words": pa.large_string(),
        "topics": pa.list_(pa.string()),
        "history": pa.list_(pa.string()),
        "tab": pa.int8(),
        "click": pa.bool_(),
        "spent": pa.float32(),
        "unused": pa.string(),
    }
)


def log_rows(rows: int, seed: int) -> dict[str, list[Any]]:
    """Random rows: skewed ids with ties, nulls wherever they are allowed."""
    rng = np.random.default_rng(seed)
    items = [f"i{n}" for n in range(30)]

    def lists(most: int) -> list[Any]:
        return [
            list(rng.choice([*items, None], rng.integers(0, most))) if rng.random() > 0.1 else None for _ in range(rows)
        ]

    def or_null(values: Any, share: float) -> list[Any]:
        return [None if rng.random() < share else value for value in values]

    words = np.array(["red", " blue", "green ", "", "dark red"])
    return {
        "row": list(range(seed * 10_000, seed * 10_000 + rows)),
        "user": or_null((rng.zipf(1.5, rows) % 100).astype(float).tolist(), 0.05),
        "item": or_null([items[n] for n in rng.integers(0, 20, rows)], 0.05),
        "flag": or_null((rng.random(rows) < 0.3).tolist(), 0.1),
        "price": or_null(np.round(rng.lognormal(1, 1, rows), 2).tolist(), 0.1),
        "visits": or_null(rng.integers(0, 50, rows).tolist(), 0.1),
        "words": or_null([",".join(rng.choice(words, rng.integers(1, 4))) for _ in range(rows)], 0.1),
        "topics": lists(4),
        "history": lists(9),
        "tab": rng.integers(0, 4, rows).tolist(),
        "click": (rng.random(rows) < 0.4).tolist(),
        "spent": np.round(rng.lognormal(0, 1, rows), 2).tolist(),
        "unused": [f"text {n}" for n in range(rows)],
    }


def write_file(path: Path, columns: dict[str, list[Any]], schema: pa.Schema = LOG_SCHEMA, group_rows: int = 50) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, schema=schema), path, row_group_size=group_rows)


def write_log(folder: Path, days: list[str] = DAYS, rows: int = 130) -> Path:
    """Writes two files per day, with row groups of 50 rows."""
    for day in days:
        for part in range(2):
            seed = int(day[-2:]) * 2 + part
            write_file(folder / f"day={day}" / f"part-{part}.parquet", log_rows(rows, seed))
    return folder


def write_side(path: Path) -> Path:
    """Writes a side table that lacks some items and has an extra one; columns: a brand and a list of years."""
    items = [f"i{n}" for n in range(3, 30)] + ["nobody sees this"]
    brands = [f"b{n % 5}" if n % 7 else None for n in range(len(items))]
    years = [[2000 + n % 3, 2001] if n % 4 else None for n in range(len(items))]
    pq.write_table(pa.table({"item": items, "brand": brands, "years": years}), path)
    return path


FEATURES: list[dict[str, Any]] = [
    {"name": "user", "column": "user", "kind": "categorical", "ids": {"vocabulary": {"min_count": 3}}, "dim": 8},
    {"name": "item", "column": "item", "kind": "categorical", "ids": {"vocabulary": {"max_size": 18}}, "dim": 8},
    {"name": "flag", "column": "flag", "kind": "categorical", "ids": {"vocabulary": {}}, "dim": 2},
    {"name": "hashed", "column": "item", "kind": "categorical", "ids": {"hash": 7}, "dim": 8},
    {"name": "price", "column": "price", "kind": "numeric", "encode": {"quantiles": 8}, "dim": 4},
    {"name": "visits", "column": "visits", "kind": "numeric", "encode": {"standardize": "identity"}},
    {"name": "log_price", "column": "price", "kind": "numeric", "encode": {"standardize": "log1p"}},
    {"name": "words", "column": "words", "kind": "multivalued", "separator": ",", "ids": {"vocabulary": {}}, "dim": 4},
    {"name": "topics", "column": "topics", "kind": "multivalued", "shares": "item"},
    {"name": "history", "column": "history", "kind": "sequence", "shares": "item", "max_length": 5},
    {"name": "brand", "column": "brand", "kind": "categorical", "ids": {"vocabulary": {}}, "dim": 4},
    {"name": "years", "column": "years", "kind": "sequence", "ids": {"vocabulary": {}}, "dim": 4, "max_length": 1},
]


def experiment(folder: Path, **sections: Any) -> Experiment:
    """An experiment over the log in `folder/log`; a dict updates a section, any other value replaces it."""
    data: dict[str, Any] = {
        "name": "test",
        "output": str(folder / "runs"),
        "logs": {
            "path": str(folder / "log"),
            "partition": "day",
            "joins": [{"path": str(folder / "side.parquet"), "key": "item"}],
            "splits": {"train": [20240101, 20240102], "valid": [20240103, 20240103], "test": [20240104, 20240109]},
            "keys": ["row"],
        },
        "table": {"lanes": 4, "row_group_rows": 16},
        "features": FEATURES,
        "scenarios": [{"name": "tab", "column": "tab", "values": [2, 0], "other": "keep"}],
        "tasks": [
            {"name": "click", "column": "click", "kind": "binary"},
            {"name": "spent", "column": "spent", "kind": "continuous", "scale": 0.5, "transform": "log1p"},
        ],
        "model": {"bottom": {"kind": "concat"}, "trunk": {"kind": "shared_bottom"}, "head": {"kind": "towers"}},
        "training": {"global_batch_size": 32},
        "evaluation": {"batch_size": 32},
    }
    for name, value in sections.items():
        data[name] = {**data[name], **value} if isinstance(value, dict) else value
    return parse_experiment(data, "test")


def read_split(table: Path, manifest: Manifest, split: str) -> pd.DataFrame:
    """All rows of a split, ordered by their key `row`."""
    files = [file for partition in manifest.split(split) for lane in partition.lanes for file in lane]
    read = pa.concat_tables([pq.read_table(table / file.path, partitioning=None) for file in files])
    return read.to_pandas().sort_values("key:row").reset_index(drop=True)


def read_days(folder: Path, days: list[str]) -> pd.DataFrame:
    """Rows of the log with the side table joined by pandas, ordered by `row`."""
    files = [path for day in days for path in sorted((folder / "log" / f"day={day}").glob("*.parquet"))]
    log = pd.concat([pq.read_table(path, partitioning=None).to_pandas() for path in files])
    side = pq.read_table(folder / "side.parquet").to_pandas()
    return log.merge(side, on="item", how="left").sort_values("row").reset_index(drop=True)


def digests(table: Path) -> dict[str, str]:
    """The hash of every file below a folder, by path."""
    files = [path for path in table.rglob("*") if path.is_file()]
    return {str(path.relative_to(table)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}
