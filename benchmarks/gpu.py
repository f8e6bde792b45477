"""Training on one GPU, by batch size, compared with its limits: `python -m benchmarks.gpu`. Needs a GPU.

For batches of 4,096 to 131,072 rows: samples per second of the step, on batches in memory and from the feature table;
where the time goes, by kernel; and the limit if matrix products ran at the rate of the GPU's matrix units and the
embedding at the bandwidth of its memory, both measured here.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import workload
from benchmarks.train import FLOPS, one_after_the_other
from pipeline.config.experiment import Experiment
from pipeline.evaluation.split_evaluation import split_reader
from pipeline.loading.batch import Batch
from pipeline.loading.position import Position
from pipeline.loading.prefetch import prefetch
from pipeline.sharding.shard import shard
from pipeline.table.manifest import read_manifest
from pipeline.training.steps import Step, choose_step
from pipeline.workers.launch import run_without_ray
from pipeline.workers.worker import Worker

ROWS = 4_000_000
BATCHES = (4_096, 8_192, 16_384, 32_768, 65_536, 131_072)
HELD, WARM_UP, STEPS = 16, 10, 40
# Parts of kernel names; a kernel that matches none of them is counted as dense.
EMBEDDING = ("embedding", "jagged", "bucketize", "bounds_check", "segment", "radix", "DeviceRadixSort", "cumsum")
INPUT = ("Memcpy HtoD", "Memcpy PtoD")


def measure(folder: Path, precision: str) -> list[dict[str, Any]]:
    """One entry per batch size."""
    workload.prepare(folder, ROWS)
    return [by_batch(folder, precision, batch) for batch in BATCHES]


def by_batch(folder: Path, precision: str, batch: int) -> dict[str, Any]:
    made = workload.experiment(folder, precision=precision, batch=batch)
    found: dict[str, Any] = {"batch": batch}

    def body(worker: Worker) -> None:
        model = shard(made, workload.inputs_of(made), worker)
        held = cycle(list(islice(batches(made, worker), HELD)))
        # A pipelined step reads ahead from the first iterator that it gets, so each source has its own step.
        step = choose_step("pipelined", model, worker.device)
        found["memory"] = rate(step, held, batch)
        found["shares"] = shares(step, held)
        step.forget()
        endless = (read for _ in range(workload.NEVER) for read in prefetch(batches(made, worker), Batch.pin_memory))
        found["disk"] = rate(choose_step("pipelined", model, worker.device), endless, batch)
        found["limit"] = limit(precision)

    run_without_ray(body, "cuda")
    return found


def batches(made: Experiment, worker: Worker) -> Iterator[Batch]:
    manifest = read_manifest(made.table_folder)
    return split_reader(made, made.table_folder, manifest, "train", worker, []).epoch(Position())


def rate(step: Step, source: Iterator[Batch], batch: int) -> int:
    """Samples per second."""
    for _ in range(WARM_UP):
        step(source)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(STEPS):
        step(source)
    torch.cuda.synchronize()
    return round(STEPS * batch / (time.perf_counter() - start))


def shares(step: Step, source: Iterator[Batch]) -> dict[str, float]:
    """Shares of the time of some steps: kernels of the embedding, of the dense part, copies of input, and idle time."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        start = time.perf_counter()
        for _ in range(STEPS):
            step(source)
        torch.cuda.synchronize()
        whole = (time.perf_counter() - start) * 1e6
    spent = {"embedding": 0.0, "input": 0.0, "dense": 0.0}
    for event in profiled.key_averages():
        spent[part_of(event.key)] += event.self_device_time_total
    found = {part: round(microseconds / whole, 3) for part, microseconds in spent.items()}
    return found | {"idle": round(max(0.0, 1 - sum(spent.values()) / whole), 3)}  # streams that overlap hide some idle


def part_of(kernel: str) -> str:
    for part, names in (("embedding", EMBEDDING), ("input", INPUT)):
        if any(name.lower() in kernel.lower() for name in names):
            return part
    return "dense"


def limit(precision: str) -> int:
    """Samples per second at the measured rates of matrix products, in this precision, and of memory."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    square = torch.randn(8192, 8192, dtype=dtype, device="cuda")
    flops = 2 * 8192**3 / seconds_of(lambda: square @ square)
    block = torch.empty(2**28, dtype=torch.float32, device="cuda")
    bandwidth = 2 * block.nbytes / seconds_of(block.clone)
    # Forward, a row is read; backward, its gradient is read, and the row and its sum of squares are read and written.
    row = workload.DIM * 4
    embedding = bandwidth / (workload.CATEGORICALS * (row + row + 2 * (row + 4)))
    return round(one_after_the_other(flops / FLOPS, embedding))


def seconds_of(work: Callable[[], Any]) -> float:
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(10):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / 10


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="folder to keep the data in; by default a temporary one")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("torch finds no GPU on this machine: nothing was measured.")
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(options.folder or Path(scratch), options.precision)
    print(f"{torch.cuda.get_device_name()}, {options.precision}, samples per second")
    for entry in found:
        print(
            f"| {entry['batch']:>7,} | memory {entry['memory']:>10,} | disk {entry['disk']:>10,} | {entry['shares']} "
            f"| limit {entry['limit']:>11,} |"
        )


if __name__ == "__main__":
    main()
