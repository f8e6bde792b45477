"""All speed benchmarks in one run, and their summary: `make bench`, or `make bench-full` for more sizes.

Writes benchmarks/results.json: the ratios by name, null with a reason if not measured; the figures behind them; and the
machine.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import cost, load, preprocess, scale, train
from benchmarks.rounds import ROOT
from cluster.versions import INSTALLED, RAY
from pipeline.console import configure_logging

RESULTS = ROOT / "benchmarks" / "results.json"
ROWS, ROWS_FULL, VOCABULARY_ROWS = [20_000_000], [2_000_000, 5_000_000, 10_000_000, 20_000_000], 1_000_000

TARGETS = {
    "train_vs_torchrec": 1.15,
    "train_bf16_vs_torchrec": 2.2,
    "train_vs_plain_torch": 1.5,
    "train_vs_torch_rechub": 2.5,
    "train_vs_memory": 0.9,
    "step_vs_limit": 0.85,
    "bf16_vs_fp32": 1.8,
    "load_vs_decode": 0.8,
    "load_vs_train": 5.0,
    "preprocess_vs_polars": 0.8,
    "vocabulary_vs_groupby": 10.0,
    "scenarios_32_vs_2": 1.3,
}
"""The target of each ratio: the least value, or the greatest for those in AT_MOST."""
AT_MOST = ("scenarios_32_vs_2",)


class Bench:
    """Runs stages one after another; a stage that fails leaves its ratios null, with the reason."""

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}
        self.reasons: dict[str, str] = {}

    def run(self, stage: str, measure: Callable[[], dict[str, Any]], report: Callable[[dict[str, Any]], None]) -> None:
        print(f"\n== {stage}", flush=True)
        start = time.perf_counter()
        try:
            self.figures[stage] = measure()
        except Exception as error:  # noqa: BLE001 - the summary shows it, and the other stages still run
            self.reasons[stage] = f"{type(error).__name__}: {error}".strip()
            print(f"failed: {self.reasons[stage]}")
            return
        report(self.figures[stage])
        print(f"({time.perf_counter() - start:.0f} s)", flush=True)

    def ratios(self) -> dict[str, float | None]:
        """The ratios of the summary, in its order."""
        found: dict[str, float] = {}
        for figures in self.figures.values():
            found |= figures.get("ratios", {})
        if "train" in self.figures and "load" in self.figures:
            trained = self.figures["train"]["one_worker"]["disk_fp32"]
            found["load_vs_train"] = self.figures["load"]["load"]["rows_per_second"] / trained
        return {name: round(found[name], 3) if name in found else None for name in TARGETS}

    def why_null(self, ratios: dict[str, float | None]) -> dict[str, str]:
        failed = "; ".join(f"{stage}: {reason}" for stage, reason in self.reasons.items())
        return {name: failed for name, value in ratios.items() if value is None}


def preprocess_measured(sizes: list[int], scratch: str) -> dict[str, Any]:
    figures = preprocess.measure(sizes, VOCABULARY_ROWS, scratch)
    ratios = {
        "preprocess_vs_polars": figures["sizes"][-1]["ratio"],
        "vocabulary_vs_groupby": figures["vocabulary"]["ratio"],
    }
    return {**figures, "ratios": ratios}


def machine() -> dict[str, Any]:
    """The machine that the figures were measured on."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "instructions": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags],
        "memory_gib": round(memory / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchrec": INSTALLED.torchrec,
        "ray": RAY,
    }


def summary(ratios: dict[str, float | None], has_amx: bool) -> str:
    """The ratios and their targets as a table."""
    lines = ["| ratio                  |  value |   target |", "| ---------------------- | -----: | -------: |"]
    for name, value in ratios.items():
        sign = "<=" if name in AT_MOST else ">="
        shown = "-" if value is None else f"{value:.2f}"
        note = " (for CPUs with AMX; this one has none)" if name == "bf16_vs_fp32" and not has_amx else ""
        lines.append(f"| {name:<22} | {shown:>6} | {sign} {TARGETS[name]:>5} |{note}")
    return "\n".join(lines)


def main() -> None:
    """Measures all stages, prints and writes the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="more sizes, workers, experts and sequences")
    full = parser.parse_args().full
    configure_logging()
    subprocess.run([sys.executable, "-m", "benchmarks.peers.install"], cwd=ROOT, check=True)  # noqa: S603
    bench = Bench()
    with tempfile.TemporaryDirectory(prefix="manygate-bench-") as scratch:
        folder = Path(scratch)
        bench.run("train", lambda: train.measure(folder / "train", rounds=6 if full else 4), train.report)
        bench.run("load", lambda: load.measure(folder / "load"), load.report)
        bench.run("cost", lambda: cost.measure(full), cost.report)
        if full:
            bench.run("scale", lambda: scale.measure(folder / "train"), scale.report)
        sizes = ROWS_FULL if full else ROWS
        bench.run("preprocess", lambda: preprocess_measured(sizes, scratch), preprocess.report)
    ratios, here = bench.ratios(), machine()
    reasons = bench.why_null(ratios)
    results = {**ratios, "why_null": reasons, "targets": TARGETS, "machine": here, "figures": bench.figures}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print("\n" + summary(ratios, "amx_bf16" in here["instructions"]))
    for name, reason in reasons.items():
        print(f"{name} was not measured: {reason}")
    sys.exit(1 if bench.reasons else 0)


if __name__ == "__main__":
    main()
