"""Users see only lines of Manygate: libraries have nothing to warn about, and their reports are left out."""

import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from manygate_guard import PACKAGES
from models.config import TrunkConfig
from models.section import sections_by_kind
from pipeline.config.experiment import Experiment
from pipeline.config.load import dump_experiment
from pipeline.console import configure_logging
from pipeline.log_records import parse_line
from pipeline.sharding.model_inputs import model_inputs
from pipeline.sharding.shard import shard
from pipeline.table.manifest import read_manifest
from pipeline.training.steps import PlainStep
from pipeline.workers.worker import Worker
from tests.commands import manygate, start_manygate
from tests.models.parts import BOTTOMS
from tests.training.runs import new_run
from tests.training.test_models import model
from tests.training.test_step import batches
from tests.workers import WorkerPool

CLICK = [{"name": "click", "column": "c", "kind": "binary"}]
NARROW: list[dict[str, Any]] = [{}, {"experts": 1}, {"hidden": [1]}]
"""Settings of trunks: with one task and one expert or unit, many tensors have a dimension of size 1."""


@pytest.fixture(scope="module", params=[1, 2])
def workers(request: pytest.FixtureRequest) -> Iterator[WorkerPool]:
    """Workers whose logging is that of a command: they are not shared with other tests."""
    pool = WorkerPool(request.param)
    yield pool
    pool.close()


def narrow_models() -> list[tuple[str, dict[str, Any]]]:
    """Every bottom and every trunk, in both precisions."""
    found = []
    for number, (kind, section) in enumerate(sections_by_kind(TrunkConfig).items()):
        for keys in NARROW:
            if keys.keys() <= section.model_fields.keys():
                bottom = list(BOTTOMS)[(number + len(found)) % len(BOTTOMS)]
                sections = {"trunk": {"kind": kind, **keys}, "head": {"kind": "towers", "hidden": []}}
                found.append(("bf16" if len(found) % 2 else "fp32", {**model(bottom, "mmoe"), **sections}))
    return found


def printed_by(work: Callable[[], object]) -> list[str]:
    """The lines that this process prints during some work, also those that C++ prints."""
    with tempfile.TemporaryFile() as file:
        streams = {stream: os.dup(stream) for stream in (1, 2)}
        for stream in streams:
            os.dup2(file.fileno(), stream)
        try:
            work()
            for printed in (sys.stdout, sys.stderr):
                printed.flush()
        finally:
            for stream, copy in streams.items():
                os.dup2(copy, stream)
                os.close(copy)
        file.seek(0)
        return file.read().decode().splitlines()


def lines_of_steps(worker: Worker, experiment: Experiment) -> list[str]:
    """Two steps of every model, where warnings that are printed once per process are always printed."""

    def work() -> None:
        configure_logging("json")
        for precision, sections in narrow_models():
            training = experiment.training.model_copy(update={"precision": precision})
            chosen_model = type(experiment.model).model_validate(sections)
            chosen = experiment.model_copy(update={"model": chosen_model, "training": training})
            inputs = model_inputs(chosen, read_manifest(chosen.table_folder).table_rows)
            sharded = shard(chosen, inputs, worker)
            step, rows = PlainStep(sharded, worker.device), iter(batches(chosen, worker.rank, worker.workers)[:2])
            assert step(rows) and step(rows)

    torch.set_warn_always(True)
    warnings.resetwarnings()  # and then as a command: `configure_logging` leaves out what only authors can act on
    return printed_by(work)


def of_others(lines: list[str]) -> list[str]:
    records = [(line, parse_line(line)) for line in lines]
    return [line for line, record in records if record is None or record.name.partition(".")[0] not in PACKAGES]


def test_a_step_prints_nothing_of_a_library(tmp_path: Path, workers: WorkerPool) -> None:
    assert len({sections["trunk"]["kind"] for _, sections in narrow_models()}) == len(sections_by_kind(TrunkConfig))
    for lines in workers.run(lines_of_steps, new_run(tmp_path, tasks=CLICK), timeout=300):
        assert of_others(lines) == []


@pytest.mark.whole_run
def test_commands_print_nothing_of_a_library(tmp_path: Path) -> None:
    """A run on one worker, its evaluation and its predictions."""
    experiment, file = new_run(tmp_path, tasks=CLICK), tmp_path / "experiment.yaml"
    file.write_text(dump_experiment(experiment))
    output = ("--output", str(tmp_path / "predictions"))
    for command, arguments in (("train", ()), ("evaluate", ()), ("predict", output)):
        written = tmp_path / command
        process = start_manygate(command, str(file), *arguments, "--log-format", "json", output=written)
        process.join(120)
        assert process.exitcode == 0, written.read_text()
        lines = written.read_text().splitlines()
        expected = manygate(command, str(file), *arguments).out.splitlines() if command == "evaluate" else []
        others = [line for line in of_others(lines) if "predictions of the test split are in" not in line]
        assert others == expected
