"""One process of our side in the contests of `benchmarks.preprocess`: does its work and prints one JSON line.

python -m benchmarks.preprocess_once features LOG TABLE
python -m benchmarks.preprocess_once vocabularies LOG TABLE

Only this module uses Ray Data. The packages that it needs are dependencies of Manygate in any case.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data.preprocessors import OrdinalEncoder

from cluster.connect import connect
from examples.synthetic.generate import NUMERICS
from pipeline import storage
from pipeline.config.experiment import Experiment
from pipeline.config.load import parse_experiment
from pipeline.features.encoder_files import encoder_file
from pipeline.preprocess.discover import read_files
from pipeline.preprocess.fit import fit_encoders
from pipeline.preprocess.job import preprocess
from pipeline.preprocess.partitions import find_partitions
from pipeline.preprocess.preprocess_plan import make_preprocess_plan
from pipeline.table.encoder_index import INDEX
from pipeline.table.settings import TableSettings

CATEGORICALS, BUCKETED = 26, 6
# For the contest of vocabularies:
COUNTED = ("c01", "c02", "c03")
ROUNDS = 2

Section = dict[str, Any]


def categorical(name: str, kind: str, min_count: int) -> Section:
    ids = {"vocabulary": {"min_count": min_count}}
    return {"name": name, "column": name, "kind": kind, "ids": ids, "dim": 16}


def numeric(name: str, encode: Section) -> Section:
    return {"name": name, "column": name, "kind": "numeric", "encode": encode}


def all_features() -> list[Section]:
    """Every column of a synthetic log without behaviours."""
    numbers = [f"n{number:02d}" for number in range(1, NUMERICS + 1)]
    return [
        *(categorical(f"c{number:02d}", "categorical", 2) for number in range(1, CATEGORICALS + 1)),
        *(numeric(name, {"quantiles": 16}) | {"dim": 8} for name in numbers[:BUCKETED]),
        *(numeric(name, {"standardize": "log1p"}) for name in numbers[BUCKETED:]),
        *(categorical(name, "multivalued", 2) for name in ("tags1", "tags2")),
    ]


def days_of(log: str) -> list[int]:
    return sorted(int(folder.name.partition("=")[2]) for folder in Path(log).glob("date=*"))


def all_columns(log: str) -> Experiment:
    """The experiment of the contest with Polars: the last two days are for validation and test."""
    *train, valid, test = days_of(log)
    splits = {"train": [train[0], train[-1]], "valid": [valid, valid], "test": [test, test]}
    watch = {"column": "watch_ms", "kind": "continuous", "scale": 0.001, "transform": "log1p"}
    tasks: list[Section] = [
        {"name": "click", "column": "click", "kind": "binary"},
        {"name": "buy", "column": "buy", "kind": "binary", "after": "click"},
        {"name": "watch_time", **watch},
    ]
    return experiment(log, splits, ["row"], all_features(), tasks)


def three_columns(log: str) -> Experiment:
    """The experiment of the contest of vocabularies: values are counted over all days, and none is left out."""
    days = days_of(log)
    features = [categorical(name, "categorical", 1) for name in COUNTED]
    click = {"name": "click", "column": "click", "kind": "binary"}
    return experiment(log, {"train": [days[0], days[-1]]}, [], features, [click])


def experiment(log: str, splits: Section, keys: list[str], features: list[Section], tasks: list[Section]) -> Experiment:
    data = {
        "name": "benchmark",
        "logs": {"path": log, "partition": "date", "splits": splits, "keys": keys},
        "table": {"lanes": 8},
        "features": features,
        "scenarios": [{"name": "channel", "column": "channel", "values": [0, 1, 2, 3]}],
        "tasks": tasks,
        "model": {"trunk": {"kind": "shared_bottom"}},
    }
    return parse_experiment(data, "the benchmark's experiment")


def make_features(log: str, table: str) -> dict[str, float]:
    """Preprocesses the log. Ray is up before the time starts, with no worker yet."""
    connect_seconds = seconds_of(connect)
    settings = all_columns(log)
    began = time.time()
    seconds = seconds_of(lambda: preprocess(settings, table))
    fitted = Path(table, "encoders", INDEX).stat().st_mtime  # the last file that the first pass writes
    return {"seconds": seconds, "fit_seconds": fitted - began, "connect_seconds": connect_seconds}


def count_values(log: str, table: str) -> dict[str, list[float]]:
    """Counts the values of three columns in three ways that take turns, in one Ray cluster."""
    connect()
    ray.data.DataContext.get_current().enable_progress_bars = False
    words = ray.data.from_items([{"value": str(number % 7)} for number in range(1000)])
    words.groupby("value", num_partitions=2).count().materialize()  # a warm-up: workers start and import
    distinct: dict[str, list[int]] = {}
    ways: dict[str, Callable[[], list[int]]] = {
        "ours_s": lambda: with_ours(log, table),
        "ray_groupby_s": lambda: with_groupby(log),
        "ordinal_encoder_s": lambda: with_ordinal_encoder(log),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, work in ways.items():
            start = time.perf_counter()
            distinct[way] = work()
            seconds[way].append(time.perf_counter() - start)
    if len(set(map(tuple, distinct.values()))) > 1:
        raise SystemExit(f"The contestants find different numbers of values: {distinct}.")
    return seconds


def with_ours(log: str, table: str) -> list[int]:
    """Values of each column, by the first pass of preprocessing."""
    settings = three_columns(log)
    path = storage.absolute(table)
    sections = settings.table_experiment
    partitions = read_files(sections.logs, find_partitions(sections.logs).partitions)
    plan = make_preprocess_plan(sections, path, [file for part in partitions for file in part.files])
    fit_encoders(plan, TableSettings.of(sections), partitions)
    return [pq.read_metadata(encoder_file(path, name)).num_rows for name in COUNTED]


def read_texts(log: str, names: Iterable[str]) -> ray.data.Dataset:
    """Columns of the log as plain texts: Ray Data cannot group columns with one dictionary per file."""
    columns = list(names)
    schema = pa.schema([(name, pa.string()) for name in columns])
    return ray.data.read_parquet(log, schema=schema).select_columns(columns)


def with_groupby(log: str) -> list[int]:
    partitions = int(ray.cluster_resources()["CPU"])  # the default of 200 takes several times as long
    grouped = (read_texts(log, [name]).groupby(name, num_partitions=partitions) for name in COUNTED)
    return [columns.count().materialize().count() for columns in grouped]


def with_ordinal_encoder(log: str) -> list[int]:
    encoder = OrdinalEncoder(columns=list(COUNTED)).fit(read_texts(log, COUNTED))
    return [len(encoder.stats_[f"unique_values({name})"]) for name in COUNTED]


def seconds_of(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Does the work that the command line names. All other output goes to standard error."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    works = {"features": make_features, "vocabularies": count_values}
    parser.add_argument("work", choices=works)
    parser.add_argument("log")
    parser.add_argument("table", help="folder that does not exist yet")
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    result = works[arguments.work](arguments.log, arguments.table)
    answers.write(json.dumps(result) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
