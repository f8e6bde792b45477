"""Small feature tables with a planted signal, written directly, for tests that need no logs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.experiment import Experiment
from pipeline.config.load import parse_experiment
from pipeline.table.manifest import (
    ID_WEIGHTS,
    KEY,
    LABEL,
    SCENARIO,
    WEIGHT,
    LaneFile,
    Manifest,
    Partition,
    TableColumn,
    write_manifest,
)
from pipeline.table.settings import fingerprint, table_settings
from pipeline.table_folder import SETTINGS

USERS, ITEMS, TAGS = 50, 30, 12
LANES = 4
DAYS = {"1": 203, "2": 151, "3": 90, "4": 90}


def experiment(folder: Path, **sections: Any) -> Experiment:
    """An experiment over the synthetic table; sections replace the defaults key by key."""
    data: dict[str, Any] = {
        "name": "synthetic",
        "output": str(folder),
        "logs": {
            "path": "unused",
            "partition": "day",
            "splits": {"train": [1, 2], "valid": [3, 3], "test": [4, 4]},
            "keys": ["row"],
        },
        "table": {"lanes": LANES, "row_group_rows": 16},
        "features": [
            {"name": "user", "column": "u", "kind": "categorical", "ids": {"hash": USERS - 2}, "dim": 8},
            {"name": "item", "column": "i", "kind": "categorical", "ids": {"hash": ITEMS - 2}, "dim": 8},
            {"name": "tags", "column": "t", "kind": "multivalued", "ids": {"hash": TAGS - 2}, "dim": 4},
            {"name": "watched", "column": "w", "kind": "sequence", "shares": "item", "max_length": 6},
            {"name": "age", "column": "a", "kind": "numeric", "encode": {"standardize": "identity"}},
        ],
        "scenarios": [{"name": "tab", "column": "s", "values": [0, 1]}],
        "tasks": [
            {"name": "click", "column": "c", "kind": "binary"},
            {"name": "buy", "column": "b", "kind": "binary", "after": "click"},
            {"name": "value", "column": "v", "kind": "continuous", "after": "buy"},
        ],
        "model": {
            "bottom": {"kind": "din", "target": "item", "hidden": [8]},
            "trunk": {"kind": "mmoe", "experts": 2, "hidden": [16]},
            "head": {"kind": "towers", "hidden": [8]},
        },
        "training": {"global_batch_size": 32, "epochs": 2, "log_every_steps": 4, "shuffle_rows": 128},
        "evaluation": {"batch_size": 64},
    }
    for name, value in sections.items():
        data[name] = {**data[name], **value} if isinstance(data.get(name), dict) else value
    return parse_experiment(data, "synthetic")


def write_table(
    folder: Path,
    of: Experiment | None = None,
    days: Mapping[str, int] = DAYS,
    users: int = USERS,
    seen: Mapping[str, int] | None = None,
) -> Manifest:
    """Writes a table of the experiment above, or of one that differs from it only in keys that reach no file.

    Args:
        folder: of the table.
        of: the experiment; days that are in none of its splits are left out.
        days: number of rows of each day. Their content depends on the earlier days, not on the splits.
        users: number of rows of the user table.
        seen: number of users that occur on a day, if fewer than all.
    """
    rng = np.random.default_rng(0)
    of = of or experiment(folder)
    planted = rng.normal(size=(USERS, 1)), rng.normal(size=(ITEMS, 1))
    partitions, first_row, schema = [], 0, None
    for day, count in days.items():
        table = _with_weights(_rows(count, first_row, planted, rng, (seen or {}).get(day, USERS)), of)
        schema = table.schema
        first_row += count
        lane_of_row = rng.permutation(np.arange(count) % LANES)
        lanes: list[list[LaneFile]] = []
        split = of.logs.split_of(day)
        if split is None:
            continue
        for lane in range(LANES):
            part = table.take(pa.array(np.flatnonzero(lane_of_row == lane)))
            path = f"{split}/day={day}/lane-{lane:03d}/unit-00000.parquet"
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(part, target, row_group_size=16, use_dictionary=False)
            lanes.append([LaneFile(path, part.num_rows, target.stat().st_size)] if part.num_rows else [])
        partitions.append(Partition(split, day, count, 0, 0, lanes))
    assert schema is not None
    settings = table_settings(of)
    (folder / SETTINGS).write_text(json.dumps(settings))
    manifest = Manifest(
        fingerprint=fingerprint(settings),
        lanes=LANES,
        row_group_rows=16,
        columns=[TableColumn(field.name, str(field.type)) for field in schema],
        table_rows={"user": users, "item": ITEMS, "tags": TAGS},
        partitions=partitions,
    )
    write_manifest(str(folder), manifest)
    return manifest


def _rows(
    count: int, first_row: int, planted: tuple[np.ndarray, np.ndarray], rng: np.random.Generator, users: int
) -> pa.Table:
    user, item = rng.integers(0, USERS, count) % users, rng.integers(0, ITEMS, count)
    tab = rng.integers(0, 3, count)
    score = planted[0][user, 0] + planted[1][item, 0] + 0.5 * tab
    click = rng.random(count) < 1 / (1 + np.exp(-2 * score))
    buy = click & (rng.random(count) < 0.5)
    return pa.table(
        {
            "user": pa.array(user, pa.int32()),
            "item": pa.array(item, pa.int32()),
            "tags": _lists(TAGS, 4, count, rng),
            "watched": _lists(ITEMS, 6, count, rng),
            "age": pa.array(rng.normal(size=count), pa.float32()),
            LABEL + "click": pa.array(click, pa.float32()),
            LABEL + "buy": pa.array(buy, pa.float32()),
            LABEL + "value": pa.array(np.where(buy, score, 0), pa.float32()),
            LABEL + "share": pa.array(click & (item % 2 == 0), pa.float32()),
            SCENARIO + "tab": pa.array(tab, pa.int32()),
            KEY + "row": pa.array(np.arange(first_row, first_row + count), pa.int64()),
        }
    )


def _with_weights(table: pa.Table, of: Experiment) -> pa.Table:
    """Labels that are missing, and weights of rows and ids that are 0 or fractions, where the experiment has them."""
    rng = np.random.default_rng([1, table[KEY + "row"][0].as_py()])
    tab = table[SCENARIO + "tab"].to_numpy()
    for task in of.tasks:
        labels = table[LABEL + task.name].to_numpy().copy()
        if task.only:
            existing = [of.scenarios[0].labels.index(of.scenarios[0].label_of(value)) for value in task.only["tab"]]
            labels[~np.isin(tab, existing)] = np.nan
        if task.missing == "skip":
            labels[rng.random(len(labels)) < 0.4] = np.nan
        place = table.column_names.index(LABEL + task.name)
        table = table.set_column(place, LABEL + task.name, pa.array(labels, pa.float32()))
    for task in of.tasks if of.has_weights else ():
        weights = rng.choice([0.0, 0.05, 0.3, 1.0, 2.5], len(table))
        table = table.append_column(WEIGHT + task.name, pa.array(weights, pa.float32()))
    for feature in of.features:
        if feature.has_weights:
            lists = table[feature.name].combine_chunks()
            weights = rng.choice([0.0, 0.25, 1.0, 3.7], len(lists.flatten()))
            column = pa.ListArray.from_arrays(lists.offsets, pa.array(weights, pa.float32()))
            table = table.append_column(ID_WEIGHTS + feature.name, column)
    return table


def _lists(values: int, longest: int, count: int, rng: np.random.Generator) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, longest + 1, count))]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(rng.integers(0, values, offsets[-1]), pa.int32()))
