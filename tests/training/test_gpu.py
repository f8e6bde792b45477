"""The same run on a CUDA device."""

from pathlib import Path
from typing import Any

import pytest

from jobs.train import run
from tests.training.runs import metrics, new_run

MODELS = {
    "din+mmoe": {},
    "dtrn+star+core": {
        "bottom": {"kind": "dtrn", "target": "item"},
        "trunk": {"kind": "star", "hidden": [16], "task_hidden": [8]},
        "objective": {"weighting": "uncertainty", "gradients": {"kind": "core"}},
    },
    "din+aesm": {"trunk": {"kind": "aesm", "experts": 4, "hidden": [16], "noise": 0.0}},
}


@pytest.mark.gpu
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_run_on_cuda_equals_the_run_on_cpu_up_to_rounding(tmp_path: Path, model: dict[str, Any]) -> None:
    """Compares both loops, on NCCL, with the reference on gloo."""
    losses = {}
    for name, training in {
        "cpu": {"device": "cpu"},
        "plain": {"device": "cuda", "loop": "plain"},
        "pipelined": {"device": "cuda", "loop": "pipelined"},
    }.items():
        experiment = new_run(tmp_path / name, training=training, model=model)
        assert run(experiment, launcher="local", workers=None, resume="auto") == 0
        losses[name] = [r["tasks"]["click"]["loss"] for r in metrics(experiment) if r["kind"] == "train"]
    assert losses["plain"] == pytest.approx(losses["cpu"], rel=1e-3)
    assert losses["pipelined"] == pytest.approx(losses["plain"], rel=1e-5)
