"""Cost of scenarios, experts and sequences: step times of one worker, with random batches in memory.

    python -m benchmarks.cost [--full]

MMoE, PLE, STAR and AESM² with 2, 8 and 32 scenarios; with --full also more experts, and DIN over three sequences.
The variants of a model take turns.
"""

import argparse
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

from benchmarks import workload
from pipeline.loading.batch import Batch
from pipeline.sharding.shard import shard
from pipeline.training.steps import Step, choose_step
from pipeline.workers.launch import run_without_ray
from pipeline.workers.worker import Worker

SCENARIOS = (2, 8, 32)
TRUNKS: dict[str, dict[str, Any]] = {
    "mmoe": workload.MMOE,
    "ple": {"kind": "ple"},
    "star": {"kind": "star"},
    "aesm": {"kind": "aesm"},
}
EXPERTS = (4, 8, 16, 32)
HELD, WARM_UP, ROUNDS = 4, 4, 15


@dataclass
class Entry:
    """One model, its batches and the seconds of its steps."""

    step: Step
    batches: Iterator[Batch]
    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def measure(full: bool) -> dict[str, Any]:
    """Milliseconds per step of each model, and the ratio for the summary."""
    found: dict[str, Any] = {}

    def body(worker: Worker) -> None:
        found["scenarios_ms"] = {
            trunk: times(worker, {str(n): {"trunk": config, "scenarios": n} for n in SCENARIOS})
            for trunk, config in TRUNKS.items()
        }
        if full:
            found["experts_ms"] = {
                kind: times(worker, {str(n): {"trunk": TRUNKS[kind] | {"experts": n}} for n in EXPERTS})
                for kind in ("mmoe", "aesm")
            }
            found["sequences_ms"] = times(worker, {"none": {}, "three, din": {"sequences": 3}})

    run_without_ray(body, "auto")
    least, most = str(SCENARIOS[0]), str(SCENARIOS[-1])
    # MMoE has no parts for each scenario; the other trunks do.
    growing = [found["scenarios_ms"][trunk] for trunk in TRUNKS if trunk != "mmoe"]
    return found | {"ratios": {"scenarios_32_vs_2": max(ms[most] / ms[least] for ms in growing)}}


def times(worker: Worker, variants: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Median milliseconds per step of variants of the workload, which take turns in a random order."""
    entries = {name: entry(worker, variant) for name, variant in variants.items()}
    order, shuffle = list(entries), random.Random(0)  # noqa: S311 - no secret
    for number in range(WARM_UP + ROUNDS):
        shuffle.shuffle(order)
        for name in order:
            start = time.perf_counter()
            entries[name].step(entries[name].batches)
            if worker.device.type == "cuda":
                torch.cuda.synchronize()
            if number >= WARM_UP:
                entries[name].seconds.append(time.perf_counter() - start)
    return {name: round(1000 * measured.median, 1) for name, measured in entries.items()}


def entry(worker: Worker, variant: dict[str, Any]) -> Entry:
    made = workload.experiment(Path("unused"), **variant)
    inputs = workload.random_inputs(made)
    model = shard(made, inputs, worker)
    batches = list(islice(workload.random_batches(inputs, variant.get("scenarios", 4)), HELD))
    return Entry(choose_step("plain", model, worker.device), cycle(batches), [])


def report(figures: dict[str, Any]) -> None:
    """Prints the figures."""
    rows = [(f"{trunk}, scenarios", ms) for trunk, ms in figures["scenarios_ms"].items()]
    rows += [(f"{trunk}, experts", ms) for trunk, ms in figures.get("experts_ms", {}).items()]
    rows += [("sequences", figures["sequences_ms"])] if "sequences_ms" in figures else []
    print("\nMilliseconds per step")
    for name, ms in rows:
        print(f"| {name:<16} | " + " | ".join(f"{key}: {value:,.1f}" for key, value in ms.items()) + " |")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--full", action="store_true")
    figures = measure(parser.parse_args().full)
    report(figures)
    print({name: round(value, 2) for name, value in figures["ratios"].items()})


if __name__ == "__main__":
    main()
