"""Training compared with its peers and its limits: `python -m benchmarks.train --folder DIR`.

Manygate reads its feature table from disk. The plain TorchRec loop has its batches in memory; plain PyTorch and
torch-rechub read arrays through their DataLoader, each with the number of loader workers that is fastest for it.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear

from benchmarks import workload
from benchmarks.rounds import ROOT, Contestant, compete
from pipeline.sharding.cpu_kernels import affine
from pipeline.workers.worker import keep_memory

ROWS = 1_000_000
PEERS = ROOT / ".venv-peers" / "bin" / "python"

INPUT = workload.CATEGORICALS * workload.DIM + 8  # features, and a scenario embedding of dim 8
# (in, out) of every matrix product for a sample: experts, gates, towers. Each is computed once forward, twice backward.
SHAPES = [(INPUT, 8 * 256), *[(256, 128)] * 8, (INPUT, 16), *[(128, 64), (64, 1)] * 2]
FLOPS = 3 * 2 * sum(a * b for a, b in SHAPES)

Figures = dict[str, Any]


def own(name: str, folder: Path, what: str, steps: int, *options: str, workers: int = 1) -> Contestant:
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
    command = [sys.executable, *(several if workers > 1 else []), "-m", "benchmarks.own", what]
    return Contestant(name, [*command, "--folder", str(folder), "--steps", str(steps), *options])


def peer(name: str, folder: Path, what: str, steps: int, *options: str) -> Contestant:
    command = [str(PEERS), "-m", f"benchmarks.peers.{what}", "--data", str(folder / "arrays"), "--steps", str(steps)]
    return Contestant(name, [*command, *options])


def one_worker(folder: Path) -> list[Contestant]:
    """All contestants with one worker."""
    return [
        own("disk_fp32", folder, "disk", 20),
        own("memory_fp32", folder, "memory", 20),
        own("dense_fp32", folder, "dense", 20),
        own("embedding", folder, "embedding", 60),
        own("disk_bf16", folder, "disk", 30, "--precision", "bf16"),
        own("memory_bf16", folder, "memory", 30, "--precision", "bf16"),
        peer("torchrec", folder, "plain_torchrec", 15),
        peer("torch_0_loaders", folder, "plain_torch", 15, "--loader-workers", "0"),
        peer("torch_1_loader", folder, "plain_torch", 15, "--loader-workers", "1"),
        peer("rechub_0_loaders", folder, "rechub_mmoe", 12, "--loader-workers", "0"),
        peer("rechub_1_loader", folder, "rechub_mmoe", 12, "--loader-workers", "1"),
    ]


def two_workers(folder: Path) -> list[Contestant]:
    return [
        own("disk_fp32", folder, "disk", 20, workers=2),
        peer("torchrec", folder, "plain_torchrec", 15, "--workers", "2"),
    ]


def measure(folder: Path, rounds: int) -> Figures:
    """Samples per second of each contestant, and the ratios. The folder keeps the log, the table and the arrays.

    Raises:
        ContestantError: a contestant failed.
    """
    workload.prepare(folder, ROWS)
    if not (folder / "arrays").exists():
        workload.export(folder, folder / "arrays")
    alone, together = one_worker(folder), two_workers(folder)
    compete(alone, rounds)
    compete(together, rounds)
    figures: Figures = {
        "one_worker": {contestant.name: round(contestant.rate) for contestant in alone},
        "two_workers": {contestant.name: round(contestant.rate) for contestant in together},
        "products": product_rates(),
    }
    figures["limits"] = limits(figures)
    figures["ratios"] = ratios(figures["one_worker"])
    return figures


def ratios(rate: dict[str, float]) -> dict[str, float]:
    """The ratios for the summary."""
    plain = max(rate["torch_0_loaders"], rate["torch_1_loader"])
    rechub = max(rate["rechub_0_loaders"], rate["rechub_1_loader"])
    return {
        "train_vs_torchrec": rate["disk_fp32"] / rate["torchrec"],
        "train_bf16_vs_torchrec": rate["disk_bf16"] / rate["torchrec"],
        "train_vs_plain_torch": rate["disk_fp32"] / plain,
        "train_vs_torch_rechub": rate["disk_fp32"] / rechub,
        "train_vs_memory": rate["disk_fp32"] / rate["memory_fp32"],
        "step_vs_limit": rate["memory_fp32"] / one_after_the_other(rate["dense_fp32"], rate["embedding"]),
        "bf16_vs_fp32": rate["disk_bf16"] / rate["disk_fp32"],
    }


def limits(figures: Figures) -> dict[str, float]:
    """Samples per second if a step were only the embedding and matrix products at the rate of this machine."""
    found = {}
    for precision, rates in figures["products"].items():
        products = max(rates.values()) * 1e9 / FLOPS
        found[precision] = round(one_after_the_other(products, figures["one_worker"]["embedding"]))
    return found


def one_after_the_other(*rates: float) -> float:
    return 1 / sum(1 / rate for rate in rates)


def product_rates() -> dict[str, dict[str, float]]:
    """GFLOP per second of the largest product, with PyTorch's `linear` and with ours."""
    keep_memory()
    rates: dict[str, dict[str, float]] = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        x, weight = torch.randn(workload.BATCH, INPUT, dtype=dtype), torch.randn(2048, INPUT, dtype=dtype)
        rates[precision] = {}
        for name, product in (("linear", linear), ("affine", affine)):
            seconds = []
            for _ in range(20):
                start = time.perf_counter()
                product(x, weight, None)
                seconds.append(time.perf_counter() - start)
            rates[precision][name] = round(2 * x.shape[0] * weight.numel() / sorted(seconds)[5] / 1e9)
    return rates


def report(figures: Figures) -> None:
    """Prints the figures."""
    for title, rates in (("One worker", figures["one_worker"]), ("Two workers", figures["two_workers"])):
        print(f"\n| {title:<18} | samples per second |\n| {'-' * 18} | -----------------: |")
        for name, rate in rates.items():
            print(f"| {name:<18} | {rate:>18,} |")
    print(f"\nProducts, GFLOP per second: {figures['products']}; limits, samples per second: {figures['limits']}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="folder to keep the data in; by default a temporary one")
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(options.folder or Path(scratch), options.rounds)
    report(figures)
    print({name: round(value, 2) for name, value in figures["ratios"].items()})


if __name__ == "__main__":
    main()
