"""Generates a log of any size with planted effects, for benchmarks and for trying a cluster: seeded, parallel with Ray.

    python -m examples.synthetic.generate examples/synthetic/log --rows 200000

A row depends only on the settings and on the number of its file: the log is the same on any number of machines.
"""

import argparse
import logging
import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cluster.connect import connect
from pipeline import storage
from pipeline.preprocess.tasks import run_tasks

FIRST_DAY = 20260101
MAX_DAYS = 31
FILE_ROWS = 250_000
LONGEST_TAGS, LONGEST_BEHAVIOUR = 5, 50
NUMERICS = 13
MISSING = 0.05  # share of missing values in each numeric column
TASKS = ("click", "buy", "watch_ms")

Numbers = NDArray[np.float32]


@dataclass(frozen=True)
class Settings:
    """The size and the contents of the log."""

    output: str  # folder or URI
    rows: int
    days: int = 10
    categoricals: int = 26
    ids: int = 100_000  # per categorical column
    zipf: float = 1.2
    scenarios: int = 4
    behaviours: int = 1  # lists of earlier items, up to LONGEST_BEHAVIOUR each
    seed: int = 0

    @property
    def files(self) -> list[tuple[int, int]]:
        """The number of rows and the day, counted from 0, of each file."""
        rows = [FILE_ROWS] * (self.rows // FILE_ROWS) + [self.rows % FILE_ROWS] * (self.rows % FILE_ROWS > 0)
        if len(rows) < self.days:  # a small log has one file per day
            rows = [self.rows // self.days + (day < self.rows % self.days) for day in range(self.days)]
        return [(count, number % self.days) for number, count in enumerate(rows)]


class World:
    """What is common to all rows: how often each id occurs, and its effect on each task in each scenario.

    The log-odds of a task are the sum, over the features, of the id's effect times the weight of the feature in the
    scenario, plus the level of the scenario. Tasks share half of their effects, and scenarios two thirds: sharing
    helps, but a model that shares everything loses something.
    """

    def __init__(self, settings: Settings) -> None:
        rng = np.random.default_rng([settings.seed, 0])
        s, count = settings, settings.categoricals
        odds = 1 / np.arange(1, s.ids + 1) ** s.zipf
        self.cumulative = np.cumsum(odds / odds.sum())
        common = rng.normal(size=(1, count, s.ids))
        own = rng.normal(size=(len(TASKS), count, s.ids))
        self.effects = ((common + own) / math.sqrt(2)).astype(np.float32)  # (tasks, features, ids)
        shared, apart = rng.normal(size=(1, count)), rng.normal(size=(s.scenarios, count))
        weights = (math.sqrt(2) * shared + apart) / math.sqrt(3 * count)
        self.weights = weights.astype(np.float32)  # (scenarios, features)
        self.levels = rng.normal(0, 0.5, (len(TASKS), s.scenarios)).astype(np.float32)
        self.numeric_weights = (rng.normal(size=NUMERICS) / math.sqrt(2 * NUMERICS)).astype(np.float32)
        self.traffic = np.cumsum(rng.dirichlet(np.full(s.scenarios, 3.0)))
        self.texts = [pa.array([f"{feature:02d}-{i:06x}" for i in range(s.ids)]) for feature in range(count)]

    def draw_ids(self, rng: np.random.Generator, count: int) -> NDArray[np.int32]:
        """Ids drawn by the Zipf law; 0 is the most frequent."""
        drawn = np.searchsorted(self.cumulative, rng.random(count), side="right")
        return np.minimum(drawn, len(self.cumulative) - 1).astype(np.int32)


def make_rows(settings: Settings, world: World, file: int, rows: int) -> pa.Table:
    """The rows of one file."""
    rng = np.random.default_rng([settings.seed, 1, file])
    scenario = np.minimum(np.searchsorted(world.traffic, rng.random(rows)), settings.scenarios - 1)
    score = world.levels[:, scenario]  # (tasks, rows)
    columns: dict[str, pa.Array] = {
        "row": pa.array(file * FILE_ROWS + np.arange(rows)),
        "channel": pa.array(scenario.astype(np.int8)),
    }
    for feature, texts in enumerate(world.texts):
        ids = world.draw_ids(rng, rows)
        score = score + world.weights[scenario, feature] * world.effects[:, feature][:, ids]
        columns[f"c{feature + 1:02d}"] = in_words(ids, texts)
    for number in range(NUMERICS):
        values = rng.normal(size=rows).astype(np.float32)
        score = score + world.numeric_weights[number] * values
        columns[f"n{number + 1:02d}"] = pa.array(np.exp(values), mask=rng.random(rows) < MISSING)
    for number in range(2):
        ids, lengths = lists(world, rng, rows, LONGEST_TAGS)
        score = score + 0.5 * means(world.effects[:, number], ids, lengths)
        columns[f"tags{number + 1}"] = in_lists(ids, lengths, world.texts[number])
    for number in range(settings.behaviours):
        ids, lengths = lists(world, rng, rows, LONGEST_BEHAVIOUR)
        score = score + 0.5 * means(world.effects[:, number], ids, lengths)
        columns[f"seen{number + 1}"] = in_lists(ids, lengths, world.texts[number])
    return pa.table(columns | outcomes(score, rng))


def outcomes(score: Numbers, rng: np.random.Generator) -> dict[str, pa.Array]:
    """A click; after a click perhaps a purchase; and the watch time, which is 0 without a click."""
    click, buy, watch = score
    clicked = rng.random(len(click)) < 1 / (1 + np.exp(0.5 - 1.5 * click))
    bought = clicked & (rng.random(len(click)) < 1 / (1 + np.exp(1.5 - 1.5 * buy)))
    milliseconds = np.exp(8 + watch + 0.5 * rng.normal(size=len(click))) * clicked
    return {
        "click": pa.array(clicked.astype(np.int8)),
        "buy": pa.array(bought.astype(np.int8)),
        "watch_ms": pa.array(milliseconds.astype(np.int64)),
    }


def lists(
    world: World, rng: np.random.Generator, rows: int, longest: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The ids of all lists, one list after another, and the length of each list."""
    lengths = rng.integers(0, longest + 1, rows, dtype=np.int32)
    return world.draw_ids(rng, int(lengths.sum())), lengths


def means(effects: Numbers, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> Numbers:
    """Mean effect ``(tasks, rows)`` of lists of ids, times the square root of their length; 0 for an empty list."""
    ends = np.cumsum(lengths)
    sums = np.concatenate([np.zeros((len(effects), 1)), np.cumsum(effects[:, ids], axis=1, dtype=np.float64)], axis=1)
    return ((sums[:, ends] - sums[:, ends - lengths]) / np.sqrt(np.maximum(lengths, 1))).astype(np.float32)


def in_words(ids: NDArray[np.int32], texts: pa.Array) -> pa.DictionaryArray:
    """The texts of ids, with a dictionary of only the ids that occur."""
    occurs = np.zeros(len(texts), bool)
    occurs[ids] = True
    codes = (np.cumsum(occurs) - 1).astype(np.int32)[ids]
    return pa.DictionaryArray.from_arrays(pa.array(codes), texts.filter(pa.array(occurs)))


def in_lists(ids: NDArray[np.int32], lengths: NDArray[np.int32], texts: pa.Array) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), in_words(ids, texts))


def write_file(item: dict[str, int], shared: tuple[Settings, World]) -> dict[str, int]:
    """Writes one file; a Ray task, which needs about 1 GB of memory."""
    (settings, world), file = shared, item["file"]
    rows, day = settings.files[file]
    path = storage.join(settings.output, f"date={FIRST_DAY + day}", f"part-{file:05d}.parquet")
    with storage.open_output(path) as stream:
        pq.write_table(make_rows(settings, world, file, rows), stream, row_group_size=FILE_ROWS)
    return {"rows": rows}


def generate(settings: Settings) -> int:
    """Writes the log and returns its number of rows. Connects to Ray."""
    connect()
    files = [{"file": number} for number in range(len(settings.files))]
    return sum(done.result["rows"] for done in run_tasks(write_file, files, (settings, World(settings))))


def main() -> None:
    """Generates the log that the command line describes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("output", help="folder or URI of the log; it must be empty or not exist yet")
    parser.add_argument("--rows", type=positive, default=200_000)
    parser.add_argument("--days", type=positive, default=10, help=f"at most {MAX_DAYS}")
    parser.add_argument("--categoricals", type=positive, default=26)
    parser.add_argument("--ids", type=positive, default=100_000, help="per categorical column")
    parser.add_argument("--zipf", type=float, default=1.2, help="exponent of the Zipf law of the ids")
    parser.add_argument("--scenarios", type=positive, default=4)
    parser.add_argument("--behaviours", type=int, default=1, help="lists of earlier items per row")
    parser.add_argument("--seed", type=int, default=0)
    arguments = vars(parser.parse_args())
    settings = Settings(**arguments | {"output": storage.absolute(arguments["output"])})
    if settings.days > min(MAX_DAYS, settings.rows):
        parser.error(f"--days: at most {MAX_DAYS}, with at least one row per day")
    if settings.categoricals < max(2, settings.behaviours):
        parser.error("--categoricals: at least 2, and at least as many as --behaviours")
    if storage.is_folder(settings.output) and storage.list_folder(settings.output):
        parser.error(f"{settings.output} is not empty: delete it, or name another folder")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(f"{generate(settings):,} rows in {settings.output}")


def positive(text: str) -> int:
    """A whole number, at least 1."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


if __name__ == "__main__":
    main()
