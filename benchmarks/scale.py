"""More workers, and larger tables: `python -m benchmarks.scale --folder DIR`.

One, two and four workers train from disk on the cores of this machine. Tables of up to 50 million rows are looked up
and updated in memory by one worker: all 26 features share one table with that many rows.
"""

import argparse
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks import workload
from benchmarks.own import embedding_alone
from benchmarks.rounds import compete
from benchmarks.train import ROWS, own
from pipeline.comparison.variants import explicit_settings
from pipeline.config.experiment import Experiment
from pipeline.config.load import parse_experiment
from pipeline.sharding.model_inputs import model_inputs
from pipeline.sharding.shard import shard
from pipeline.workers.launch import run_without_ray
from pipeline.workers.worker import Worker

WORKERS = (1, 2, 4)
TABLE_ROWS = (1_000_000, 10_000_000, 50_000_000)
STEPS, WARM_UP, HELD = 60, 20, 20


def measure(folder: Path) -> dict[str, Any]:
    """Samples per second by number of workers, and of the embedding alone by number of table rows."""
    workload.prepare(folder, ROWS)
    contestants = {count: own(f"{count} workers", folder, "disk", 12, workers=count) for count in WORKERS}
    for contestant in contestants.values():  # one after another: seven processes at a time would wait for memory
        compete([contestant], rounds=3)
    return {
        "workers": {str(count): round(contestant.rate) for count, contestant in contestants.items()},
        "table_rows": {f"{rows:,}": embedding_rate(rows) for rows in TABLE_ROWS},
    }


def embedding_rate(rows: int) -> int:
    """Samples per second of the embedding alone, where all features share one table with this many rows."""
    made = one_table(workload.experiment(Path("unused")))
    inputs = model_inputs(made, {"c01": rows})
    rates: list[int] = []

    def body(worker: Worker) -> None:
        model = shard(made, inputs, worker)
        batches = list(islice(workload.random_batches(inputs, scenarios=4), HELD))
        step = embedding_alone(model, batches, worker)
        for number in range(WARM_UP + STEPS):
            if number == WARM_UP:
                start = time.perf_counter()
            step()
        rates.append(round(STEPS * workload.BATCH / (time.perf_counter() - start)))

    run_without_ray(body, "auto")
    return rates[0]


def one_table(made: Experiment) -> Experiment:
    """The workload with one table for all features."""
    data = explicit_settings(made)
    first, *others = data["features"]
    shared = [{key: f[key] for key in ("name", "column", "kind")} | {"shares": first["name"]} for f in others]
    return parse_experiment(data | {"features": [first, *shared]}, "benchmark")


def report(figures: dict[str, Any]) -> None:
    """Prints the figures."""
    for title in ("workers", "table_rows"):
        print(f"\n{title.replace('_', ' ')}, samples per second")
        for name, rate in figures[title].items():
            print(f"| {name:>12} | {rate:>10,} |")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="folder to keep the data in; by default a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        report(measure(options.folder or Path(scratch)))


if __name__ == "__main__":
    main()
