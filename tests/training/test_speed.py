"""Optimisations for speed change no result."""

import resource
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.experiment import Experiment
from pipeline.config.training import DenseOptimizerConfig
from pipeline.sharding import cpu_kernels
from pipeline.sharding.optimizers import dense_optimizer
from pipeline.workers.worker import keep_memory
from tests.training.runs import continued, metrics, new_run, run_on, tensors
from tests.workers import one_worker

TRUNKS = {
    "mmoe": {"kind": "mmoe", "experts": 2, "hidden": [16, 8]},
    "star": {"kind": "star", "hidden": [16], "task_hidden": [8]},
}


def run(folder: Path, trunk: dict[str, Any]) -> Experiment:
    experiment = new_run(folder, model={"trunk": trunk}, training={"epochs": 1})
    run_here(experiment)
    return experiment


def run_here(experiment: Experiment) -> None:
    with one_worker() as worker:
        run_on(worker, experiment)


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for part in value.values() for number in numbers(part)]
    return [float(value)] if isinstance(value, int | float) else []


@pytest.mark.parametrize("trunk", TRUNKS)
def test_a_run_with_convolutions_has_the_metrics_of_a_run_without(
    trunk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_kernels, "SMALLEST", 1)
    calls: list[int] = []
    convolve = cpu_kernels._convolve
    monkeypatch.setattr(cpu_kernels, "_convolve", lambda *arguments: calls.append(1) or convolve(*arguments))
    with_them = run(tmp_path / "with", TRUNKS[trunk])
    assert calls or not cpu_kernels.HAS_FAST_CONVOLUTIONS
    monkeypatch.setattr(cpu_kernels, "HAS_FAST_CONVOLUTIONS", False)
    without = run(tmp_path / "without", TRUNKS[trunk])
    assert numbers(metrics(with_them)[-1]) == pytest.approx(numbers(metrics(without)[-1]), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_a_resumed_run_with_convolutions_equals_the_uninterrupted_run_bit_by_bit(
    trunk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_kernels, "SMALLEST", 1)
    sections = {"model": {"trunk": TRUNKS[trunk]}, "training": {"epochs": 1}, "checkpoint": {"every_steps": 4}}
    straight = new_run(tmp_path / "straight", **sections)
    run_here(straight)
    resumed = continued(straight, tmp_path / "resumed", 4, **sections)
    run_here(resumed)
    last = metrics(straight)[-1]["step"]
    assert metrics(resumed) == metrics(straight)
    ours, theirs = tensors(resumed, last, tmp_path), tensors(straight, last, tmp_path)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("kind", ["adam", "adamw", "adagrad", "sgd"])
def test_the_fused_optimizer_equals_the_plain_optimizer(kind: str) -> None:
    classes = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "adagrad": torch.optim.Adagrad}
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4)) for _ in range(2))
    fused = dense_optimizer({"w": ours}, DenseOptimizerConfig(kind=kind, lr=0.1, weight_decay=0.01), None)
    plain = classes.get(kind, torch.optim.SGD)([theirs], lr=0.1, weight_decay=0.01, foreach=False, fused=False)
    for _ in range(4):
        gradient = torch.randn(3, 4)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        fused.step()
        plain.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts the page faults of Linux")
def test_large_blocks_are_not_returned_to_the_kernel_between_steps() -> None:
    keep_memory()

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)  # 64 MiB, 16,384 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    assert min(faults() for _ in range(3)) < 1_000
