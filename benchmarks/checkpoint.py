"""Cost of saving: its duration compared with a plain write of the same size, and the training time lost.

    python -m benchmarks.checkpoint examples/kuairand/experiment.yaml [--rows 1000000] [key=value ...]

Uses the experiment's feature table (preprocess first); every embedding table gets at least `--rows` rows, so that the
state is large enough to matter. One worker, in this process. Saves take turns with a plain sequential write of the same
number of bytes to the same disk, synced as the files of a save are. The training time lost by a save is the time of the
steps around it minus the time of as many steps without a save. Writes benchmarks/checkpoint.json.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch

from pipeline.checkpoint.saving import Saver
from pipeline.config.experiment import Experiment
from pipeline.config.load import load_experiment
from pipeline.loading.batch import Batch
from pipeline.loading.position import Position
from pipeline.table.manifest import Manifest, read_manifest
from pipeline.training.run import fresh_state
from pipeline.training.state import RunState, run_settings
from pipeline.training.steps import PlainStep
from pipeline.training.windows import make_training_window, train_reader
from pipeline.workers.launch import run_without_ray
from pipeline.workers.worker import Worker

RESULT = Path(__file__).with_name("checkpoint.json")
ROUNDS = 5
STEPS = 16  # together longer than a save
CHUNK = 2**24


def measure(worker: Worker, experiment: Experiment, rows: int) -> None:
    manifest = read_manifest(experiment.table_folder)
    manifest = replace(manifest, table_rows={name: max(n, rows) for name, n in manifest.table_rows.items()})
    state = fresh_state(experiment, manifest, worker)
    settings = run_settings(experiment, manifest, worker)
    step, batches = PlainStep(state.model, worker.device), endless(experiment, manifest, worker)
    state.model.module.train()
    for _ in range(3):
        step(batches)
    found: dict[str, list[dict[str, float]]] = {"background": [], "foreground": [], "plain write": []}
    size = 0
    for _ in range(ROUNDS):
        for kind in ("background", "foreground"):
            with tempfile.TemporaryDirectory(dir=Path(experiment.output).absolute().parent) as folder:
                saver = Saver(folder, worker, state.progress, in_background=kind == "background")
                found[kind].append(save_once(state, settings, saver, lambda: step(batches)))
                size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        with tempfile.TemporaryDirectory(dir=Path(experiment.output).absolute().parent) as folder:
            found["plain write"].append({"seconds": seconds_of(partial(write_plainly, Path(folder) / "plain", size))})
    report(size, found)


def endless(experiment: Experiment, manifest: Manifest, worker: Worker) -> Iterator[Batch]:
    window = make_training_window(experiment, manifest, manifest.digests("train"), first_step=0)
    reader = train_reader(experiment, manifest, worker, window)
    return chain.from_iterable(reader.epoch(Position(epoch, 0)) for epoch in count())


def save_once(state: RunState, settings: dict[str, Any], saver: Saver, step: Callable[[], Any]) -> dict[str, float]:
    """Seconds of the save, of waiting before the next step, of training time lost in total, and of a step."""
    durations: list[float] = []
    without = seconds_of(lambda: [step() for _ in range(STEPS)])
    start = time.perf_counter()
    state.save(saver, settings, lambda _, seconds: durations.append(seconds))
    waited = time.perf_counter() - start
    for _ in range(STEPS):
        step()
    saver.settle()
    lost = time.perf_counter() - start - without
    assert saver.saved_step == state.progress.step, "the save failed"
    return {"seconds": durations[0], "waited": waited, "lost": lost, "step": without / STEPS}


def write_plainly(path: Path, size: int) -> None:
    """Writes the bytes sequentially; they are on the disk when this returns."""
    chunk = os.urandom(CHUNK)
    with path.open("wb") as file:
        for start in range(0, size, CHUNK):
            file.write(chunk[: min(CHUNK, size - start)])
        file.flush()
        os.fsync(file.fileno())


def seconds_of(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def report(size: int, found: dict[str, list[dict[str, float]]]) -> None:
    medians = {
        kind: {name: statistics.median(run[name] for run in runs) for name in runs[0]} for kind, runs in found.items()
    }
    plain = medians["plain write"]["seconds"]
    pace = statistics.median(run["step"] for kind in ("foreground", "background") for run in found[kind])
    print(f"\nA checkpoint of {size:,} bytes; a step takes {pace * 1000:.0f} ms; medians of {ROUNDS}\n")
    print("| save       | seconds |  times a plain write | training waits | training loses |")
    print("| ---------- | ------: | -------------------: | -------------: | -------------: |")
    for kind in ("foreground", "background"):
        m = medians[kind]
        print(
            f"| {kind:<10} | {m['seconds']:>7.2f} | {m['seconds'] / plain:>20.2f} | {m['waited']:>12.2f} s "
            f"| {m['lost']:>12.2f} s |"
        )
    print(f"| plain      | {plain:>7.2f} | {1:>20.2f} |                |                |")
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__}
    result = {"bytes": size, "rounds": ROUNDS, **medians, "machine": machine}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    """Measures the experiment that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint")
    parser.add_argument("experiment")
    parser.add_argument("--rows", type=int, default=1_000_000, help="least number of rows of each embedding table")
    args, overrides = parser.parse_known_args()
    experiment = load_experiment(args.experiment, overrides)

    def body(worker: Worker) -> None:
        measure(worker, experiment, args.rows)

    device = experiment.training.device
    run_without_ray(body, device)


if __name__ == "__main__":
    main()
