"""The work of our preprocessing as a program that uses only Polars: the other side of `benchmarks.preprocess`.

    .venv-peers/bin/python -m benchmarks.peers.polars_preprocess LOG OUTPUT

LOG is the output of `examples.synthetic.generate` with `--behaviours 0`. Both passes are streamed, and each is one
query, so that the log is read once per pass. Prints one JSON line: rows, seconds of each pass and of both, without
imports, and the peak memory of the process.

Texts are read as categoricals, whose codes are valid for the whole process: an id is looked up in an array by the code,
and no text is hashed twice. Numbers are put into buckets by comparing them with all edges, which is faster than a
binary search for so few edges. Rows are assigned to lanes by a seeded hash of their key, because a shuffle could not be
streamed; within a lane rows keep the order of the log, while our preprocessing shuffles them there too.

It does less than our preprocessing: rows are not checked, only vocabularies are counted, a null inside a list gets no
id, and an interrupted run starts again from the beginning.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

CATEGORICALS = [f"c{number:02d}" for number in range(1, 27)]
BUCKETED = [f"n{number:02d}" for number in range(1, 7)]
STANDARDIZED = [f"n{number:02d}" for number in range(7, 14)]
LISTS = ["tags1", "tags2"]
SCENARIOS = 4  # channel: 0 to 3; all other values are one more scenario
MISSING_ID, UNKNOWN_ID, FIRST_VALUE_ID = 0, 1, 2
MIN_COUNT, BUCKETS, LANES, SEED = 2, 16, 8, 0
ROW_GROUP = 8192  # as our preprocessing writes them
HELD_OUT_DAYS = 2


@dataclass(frozen=True)
class Vocabulary:
    """The values that have an id, and the ids by the code of the categorical."""

    state: pl.DataFrame  # value, id, count
    counted: pl.DataFrame  # keeps the codes: Polars forgets categories that nothing uses
    ids: pl.Series  # the last entry is used for all larger codes

    @property
    def last(self) -> int:
        return len(self.ids) - 1


@dataclass(frozen=True)
class Encoders:
    """Everything that the first pass finds."""

    vocabularies: dict[str, Vocabulary]
    edges: dict[str, list[float]]
    moments: dict[str, tuple[float, float]]


def fit(train: pl.LazyFrame) -> Encoders:
    """The first pass, over the training days."""
    counts = [train.group_by(name).agg(count=pl.len()) for name in CATEGORICALS]
    counts += [train.select(pl.col(name).explode()).group_by(name).agg(count=pl.len()) for name in LISTS]
    shares = [number / BUCKETS for number in range(1, BUCKETS)]
    edges = train.select(pl.col(BUCKETED).quantile(shares, interpolation="equiprobable"))
    logs = pl.col(STANDARDIZED).cast(pl.Float64).log1p()
    moments = train.select(logs.mean().name.suffix(" mean"), logs.std(ddof=0).name.suffix(" deviation"))
    *counted, edge, moment = pl.collect_all([*counts, edges, moments], engine="streaming")
    return Encoders(
        {name: vocabulary(frame) for name, frame in zip([*CATEGORICALS, *LISTS], counted, strict=True)},
        {name: sorted(set(edge[name][0])) for name in BUCKETED},
        {name: (moment[f"{name} mean"][0], moment[f"{name} deviation"][0]) for name in STANDARDIZED},
    )


def vocabulary(counted: pl.DataFrame) -> Vocabulary:
    """Ids of the values that occur often enough: by falling frequency, and at equal frequency by value."""
    column = counted.columns[0]
    frequent = counted.lazy().drop_nulls().filter(pl.col("count") >= MIN_COUNT)
    ordered = (
        frequent.with_columns(value=pl.col(column).cast(pl.String))
        .sort("count", "value", descending=[True, False])
        .with_columns(id=pl.int_range(FIRST_VALUE_ID, FIRST_VALUE_ID + pl.len(), dtype=pl.Int32))
        .collect()
    )
    codes = ordered[column].to_physical().to_numpy()
    ids = np.full(int(codes.max(initial=0)) + 2, UNKNOWN_ID, np.int32)
    ids[codes] = ordered["id"].to_numpy()
    return Vocabulary(ordered.select("value", "id", "count"), counted, pl.Series(ids))


def write_encoders(encoders: Encoders, folder: Path) -> None:
    """Writes what is needed to encode later logs."""
    folder.mkdir(parents=True)
    for name, known in encoders.vocabularies.items():
        known.state.write_parquet(folder / f"{name}.parquet", compression="lz4")
    numbers = {"edges": encoders.edges, "moments": encoders.moments}
    (folder / "numbers.json").write_text(json.dumps(numbers))


def encoded(encoders: Encoders) -> list[pl.Expr]:
    """The columns of the lane files, under the names that our preprocessing gives them."""
    known = encoders.vocabularies
    channel = pl.col("channel").cast(pl.Int32)
    return [
        *(single(name, known[name]) for name in CATEGORICALS),
        *(bucket(name, encoders.edges[name]) for name in BUCKETED),
        *(standardized(name, *encoders.moments[name]) for name in STANDARDIZED),
        *(pl.col(name).list.eval(items(known[name])) for name in LISTS),
        pl.col("click", "buy").cast(pl.Float32).name.prefix("label:"),
        (pl.col("watch_ms") * 0.001).log1p().cast(pl.Float32).alias("label:watch_time"),
        pl.when(channel.is_between(0, SCENARIOS - 1)).then(channel).otherwise(SCENARIOS).alias("scenario:channel"),
        pl.col("row").alias("key:row"),
    ]


def single(name: str, known: Vocabulary) -> pl.Expr:
    codes = pl.col(name).to_physical().clip(upper_bound=known.last)
    return pl.lit(known.ids).gather(codes).fill_null(MISSING_ID).alias(name)


def items(known: Vocabulary) -> pl.Expr:
    """Ids of a list's items. A literal series would be repeated for every list, so this is a function."""

    def look_up(values: pl.Series) -> pl.Series:
        return known.ids.gather(values.to_physical().clip(upper_bound=known.last))

    return pl.element().map_batches(look_up, return_dtype=pl.Int32, is_elementwise=True)


def bucket(name: str, edges: list[float]) -> pl.Expr:
    number = pl.col(name)
    below = pl.sum_horizontal([(number >= edge).cast(pl.Int8) for edge in edges])
    return pl.when(number.is_null()).then(MISSING_ID).otherwise(below + FIRST_VALUE_ID).cast(pl.Int32).alias(name)


def standardized(name: str, mean: float, deviation: float) -> pl.Expr:
    scaled = (pl.col(name).cast(pl.Float64).log1p() - mean) / deviation
    return scaled.fill_null(0.0).cast(pl.Float32).alias(name)


def write_lanes(log: pl.LazyFrame, encoders: Encoders, folder: Path) -> None:
    """The second pass, over all days: one file per day and lane."""
    lane = (pl.col("row").hash(SEED) % LANES).alias("lane")
    target = pl.PartitionBy(folder, key=["date", "lane"], include_key=False, approximate_bytes_per_file=None)
    log.select(*encoded(encoders), "date", lane).sink_parquet(
        target,
        compression="lz4",
        statistics=False,
        row_group_size=ROW_GROUP,
        maintain_order=False,
        mkdir=True,
        engine="streaming",
    )


def timed(work: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    result = work(*arguments)
    return result, time.perf_counter() - start


def first_pass(log: pl.LazyFrame, days: list[int], output: Path) -> Encoders:
    encoders = fit(log.filter(pl.col("date") <= days[-1 - HELD_OUT_DAYS]))
    write_encoders(encoders, output / "encoders")
    return encoders


def main() -> None:
    """Preprocesses the log that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("log", type=Path)
    parser.add_argument("output", type=Path, help="a folder that does not exist yet")
    arguments = parser.parse_args()
    days = sorted(int(folder.name.partition("=")[2]) for folder in arguments.log.glob("date=*"))
    log = pl.scan_parquet(arguments.log, hive_partitioning=True, glob=True)
    encoders, fit_seconds = timed(first_pass, log, days, arguments.output)
    _, write_seconds = timed(write_lanes, log, encoders, arguments.output / "lanes")
    about = {
        "rows": log.select(pl.len()).collect().item(),
        "fit_seconds": fit_seconds,
        "transform_seconds": write_seconds,
        "seconds": fit_seconds + write_seconds,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(about))


if __name__ == "__main__":
    main()
