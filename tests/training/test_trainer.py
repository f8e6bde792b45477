"""Training runs apart from resuming: learning, stopping, logging, failed saves, the list of their state."""

import logging
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.train import run
from pipeline.checkpoint.choice import BEST
from pipeline.checkpoint.format import claim, complete_checkpoints, find_checkpoint
from pipeline.config.experiment import Experiment
from pipeline.config.load import dump_experiment
from pipeline.errors import UserError
from pipeline.table.manifest import read_manifest
from pipeline.training.metrics_log import RunLog
from pipeline.training.run import fresh_state, split_validation
from pipeline.training.state import run_settings
from pipeline.training.trainer import Criterion, Trainer
from pipeline.training.windows import train_reader
from pipeline.workers.stop import INTERRUPTED_EXIT_CODE, Stop
from pipeline.workers.worker import Worker
from tests import synthetic
from tests.training.runs import assert_identical, continued, metrics, new_run, run_on, tensors
from tests.workers import WorkerPool, one_worker


def test_two_workers_learn_the_planted_signal(tmp_path: Path, two_workers: WorkerPool) -> None:
    """With a bottom of its own; tests/training/test_models.py has every trunk, on one worker."""
    experiment = new_run(
        tmp_path,
        model={"bottom": {"kind": "din", "target": "item"}},
        training={"epochs": 6, "dense_optimizer": {"lr": 0.01}, "sparse_optimizer": {"lr": 0.3}},
    )
    two_workers.run(run_on, experiment)
    aucs = [r["tasks"]["click"]["auc"] for r in metrics(experiment) if r["kind"] == "valid"]
    assert max(aucs) > 0.8


def test_bf16_is_close_to_fp32(tmp_path: Path) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        experiment = new_run(tmp_path / precision, training={"precision": precision})
        with one_worker() as worker:
            run_on(worker, experiment)
        losses.append([r["tasks"]["click"]["loss"] for r in metrics(experiment) if r["kind"] == "train"])
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.parametrize(("level", "step"), [(Stop.AT_SAVE, 4), (Stop.AFTER_STEP, 1), (Stop.FOR_GOOD, 1)])
def test_a_stop_request_ends_the_run_with_a_checkpoint(level: Stop, step: int, tmp_path: Path) -> None:
    """At once, or after the next checkpoint that is due; and then the run continues where it was."""
    experiment = new_run(tmp_path, checkpoint={"every_steps": 4}, training={"epochs": 1})
    with one_worker() as worker:
        worker.stop.request(level)
        assert run_on(worker, experiment) == "interrupted" and worker.stop.is_obeyed
        assert [saved.step for saved in complete_checkpoints(experiment.checkpoint_folder)] == [step]
    with one_worker() as worker:
        assert run_on(worker, experiment) == "finished" and not worker.stop.is_obeyed


def test_early_stopping_ends_the_run_for_good(tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "training": {
            "epochs": 50,
            "sparse_optimizer": {"lr": 3.0},
            "early_stopping": {"metric": "click.log_loss", "patience": 2},
        }
    }
    experiment = new_run(tmp_path, **sections)
    with one_worker() as worker:
        assert run_on(worker, experiment) == "stopped early"
    steps = [r["step"] for r in metrics(experiment)]
    assert steps[-1] < 50 * 12
    with one_worker() as worker:
        assert run_on(worker, experiment) == "stopped early"
    assert [r["step"] for r in metrics(experiment)] == steps


@pytest.mark.parametrize("metric", ["click.auc", "buy.auc"])
def test_a_metric_that_is_undefined_is_reported_at_once_with_metrics_that_are_not(
    metric: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The valid split has one row, so that an AUC is undefined."""
    sections = {"training": {"epochs": 3, "early_stopping": {"metric": metric, "patience": 1}}}
    experiment = synthetic.experiment(tmp_path / "undefined", **sections)
    synthetic.write_table(Path(experiment.folder) / "table", experiment, {"1": 203, "2": 151, "3": 1, "4": 90})
    with one_worker() as worker, caplog.at_level(logging.INFO, "pipeline"):
        assert run_on(worker, experiment) == "finished"
    lines = [record.getMessage() for record in caplog.records]
    (warning,) = [line for line in lines if "is undefined on the valid split (1 rows, " in line]
    assert warning.startswith(f"training.early_stopping.metric: {metric} ")
    assert lines.index(warning) < lines.index(next(line for line in lines if line.startswith("step 12 validation")))
    with pytest.raises(UserError, match=f"is the best: {metric}, .*, was undefined on the valid split in every"):
        find_checkpoint(experiment.checkpoint_folder, BEST)

    advised = re.search(r"use one that is defined there \(([\w., ]+)\)", warning)
    assert advised is not None
    for number, other in enumerate(advised[1].split(", ")):
        stopping = {"epochs": 1, "early_stopping": {"metric": other, "patience": 1}}
        followed = synthetic.experiment(tmp_path / str(number), training=stopping)
        shutil.copytree(Path(experiment.folder) / "table", Path(followed.folder) / "table")
        caplog.clear()
        with one_worker() as worker:
            run_on(worker, followed)
        assert "is undefined" not in caplog.text
        assert find_checkpoint(followed.checkpoint_folder, BEST) is not None


def test_the_reason_why_there_is_no_best_checkpoint(tmp_path: Path) -> None:
    experiment = new_run(tmp_path / "without", training={"max_steps": 2})
    stopping = {"max_steps": 4, "validate_every_steps": 4, "early_stopping": {"metric": "click.auc", "patience": 1}}
    early = new_run(tmp_path / "early", training=stopping, checkpoint={"every_steps": 2, "keep_last": 9})
    for run_of in (experiment, early):
        with one_worker() as worker:
            run_on(worker, run_of)
    with pytest.raises(UserError, match="is the best: training.early_stopping, whose metric decides, was not set"):
        find_checkpoint(experiment.checkpoint_folder, BEST)
    assert find_checkpoint(early.checkpoint_folder, BEST) is not None
    shutil.rmtree(Path(early.checkpoint_folder) / "step-00000004")
    with pytest.raises(UserError, match="is the best: there was no validation yet since training began"):
        find_checkpoint(early.checkpoint_folder, BEST)


def test_max_steps_ends_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    experiment = new_run(tmp_path, training={"max_steps": 7})
    with one_worker() as worker:
        assert run_on(worker, experiment) == "finished"
    assert (Path(experiment.folder) / "checkpoints/step-00000007/complete.json").exists()


def test_a_run_continues_after_a_failed_save(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """There is a file in place of the folder of checkpoint 5, so that this save fails. The others do not."""
    sections = {"checkpoint": {"every_steps": 5, "keep_last": 100}}
    straight, disturbed = new_run(tmp_path / "straight", **sections), new_run(tmp_path / "disturbed", **sections)
    blocked = Path(disturbed.folder) / "checkpoints/step-00000005"
    blocked.parent.mkdir()
    blocked.write_text("in the way")
    for experiment in (straight, disturbed):
        with one_worker() as worker:
            assert run_on(worker, experiment) == "finished"
    assert "checkpoint of step 5 could not be saved" in caplog.text
    assert_identical(tensors(straight, 24, tmp_path), tensors(disturbed, 24, tmp_path))


def test_a_last_step_that_cannot_be_saved_is_an_error(tmp_path: Path) -> None:
    experiment = new_run(tmp_path, training={"max_steps": 2})
    blocked = Path(experiment.folder) / "checkpoints/step-00000002"
    blocked.parent.mkdir()
    blocked.write_text("in the way")
    with one_worker() as worker, pytest.raises(UserError, match="its checkpoint could not be saved"):
        run_on(worker, experiment)


def test_divergence_ends_the_run_before_a_useless_checkpoint(tmp_path: Path) -> None:
    experiment = new_run(tmp_path, training={"dense_optimizer": {"lr": 1e30}, "sparse_optimizer": {"lr": 1e30}})
    with one_worker() as worker, pytest.raises(UserError, match="training has diverged"):
        run_on(worker, experiment)
    assert not list((Path(experiment.folder) / "checkpoints").glob("step-*"))
    assert "NaN" not in (Path(experiment.folder) / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"scenarios": [{"name": "tab", "column": "s", "values": [1, 0]}]},
            r"scenarios.tab.values: \[0, 1\] -> \[1, 0\]",
        ),
        ({"table": {"lanes": 2}}, "table.lanes: 4 -> 2"),
        ({"logs": {"splits": {"train": [1, 3], "valid": [4, 4]}}}, "has it in `valid`"),
        ({"logs": {"keys": []}}, "logs.keys"),
    ],
)
def test_a_table_of_another_experiment_is_refused(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    new_run(tmp_path)
    with pytest.raises(UserError, match=message):
        run(synthetic.experiment(tmp_path, **sections), launcher="local", workers=None, resume="auto")


def test_a_checkpoint_contains_everything_that_a_resume_needs(tmp_path: Path) -> None:
    """Its parts, by their names on disk. The exact resumes of test_resume.py show that nothing is missing."""
    experiment = new_run(tmp_path, training={"max_steps": 2})
    with one_worker() as worker:
        run_on(worker, experiment)
    (saved,) = complete_checkpoints(experiment.checkpoint_folder)
    assert {name.split("/")[0] for name in tensors(experiment, 2, tmp_path)} == {"model", "optimizer", "own"}
    own = {name.split("/")[2] for name in tensors(experiment, 2, tmp_path) if name.startswith("own/")}
    assert own == {"rng_cpu", "sums", "auc"}
    assert asdict(saved.state().progress).keys() == {
        "step", "position", "best", "best_step", "stale_validations", "smearing", "window",
        "earlier",
    }  # fmt: skip


def test_a_checkpoint_with_a_truncated_file_is_lost_and_the_run_continues(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file size limit of the kernel, in place of a full disk, makes a write fail in the middle of a file."""
    experiment = new_run(tmp_path / "cut", checkpoint={"every_steps": 5, "keep_last": 100})
    straight = continued(experiment, tmp_path / "straight", 0, checkpoint={"every_steps": 5, "keep_last": 100})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Validation:
        """Removes the limit at the first validation, at step 12."""

        def __call__(self) -> dict[str, Any]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            return {"tasks": {}, "smearing": {}}

    for run_of, limit in ((straight, soft), (experiment, 20_000)):
        manifest = read_manifest(run_of.table_folder)
        with one_worker() as worker:
            state = fresh_state(run_of, manifest, worker)
            settings = run_settings(run_of, manifest, worker)
            trainer = Trainer(run_of, state, settings, RunLog(run_of.folder, 0), validation=Validation())
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            try:
                assert trainer.train(train_reader(run_of, manifest, worker, state.progress.window)) == "finished"
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "The checkpoint of step 5 could not be saved" in caplog.text
    steps = [saved.step for saved in complete_checkpoints(experiment.checkpoint_folder)]
    assert steps == [15, 20, 24], "only the truncated checkpoints of steps 5 and 10 are lost"
    assert_identical(tensors(straight, 24, tmp_path), tensors(experiment, 24, tmp_path))


def test_the_best_step_is_the_best_one_that_was_saved(tmp_path: Path) -> None:
    """Saves of new best steps fail at step 4 and at the last step, 8. The second try to save step 8 succeeds."""
    sections = {"training": {"max_steps": 8, "validate_every_steps": 2}, "checkpoint": {"keep_last": 100}}
    experiment = new_run(tmp_path, **sections)
    manifest = read_manifest(experiment.table_folder)
    folder, scores, validated = Path(experiment.checkpoint_folder), [0.5, 0.6, 0.55, 0.7], []

    def blocked(step: int) -> Path:
        return folder / f"step-{step:08d}"

    def validate() -> dict[str, Any]:
        validated.append(scores[len(validated)])
        step = 2 * len(validated)
        if step in (4, 8):
            blocked(step).write_text("in the way")
        return {"tasks": {}, "smearing": {}}

    class Retrying(RunLog):
        def flush(self) -> None:
            super().flush()
            if len(validated) == 4 and self.flushes:
                blocked(8).unlink()
            self.flushes += len(validated) == 4

        flushes = 0

    criterion = Criterion(lambda _: validated[-1], lambda new, best: best is None or new > best, str)
    with one_worker() as worker:
        state = fresh_state(experiment, manifest, worker)
        settings = run_settings(experiment, manifest, worker)
        run_log = Retrying(experiment.folder, 0)
        trainer = Trainer(experiment, state, settings, run_log, validate, criterion)
        trainer.train(train_reader(experiment, manifest, worker, state.progress.window))
    saved = complete_checkpoints(experiment.checkpoint_folder)
    assert [checkpoint.step for checkpoint in saved] == [2, 6, 8]
    at = {checkpoint.step: checkpoint.state().progress for checkpoint in saved}
    assert (at[6].best, at[6].best_step) == (0.55, 6), "0.6 of step 4 cannot be loaded"
    assert (at[8].best, at[8].best_step) == (0.7, 8)


def test_a_run_that_another_has_taken_over_ends_and_writes_nothing_more(tmp_path: Path) -> None:
    """Workers that have lost the connection to a Ray that has died may still run for a while."""
    experiment = new_run(tmp_path, checkpoint={"every_steps": 5})
    manifest = read_manifest(experiment.table_folder)

    def taken_over() -> dict[str, Any]:
        claim(experiment.folder)
        return {"tasks": {}, "smearing": {}}

    with one_worker() as worker:
        state = fresh_state(experiment, manifest, worker)
        settings = run_settings(experiment, manifest, worker)
        trainer = Trainer(experiment, state, settings, RunLog(experiment.folder, 0), validation=taken_over)
        with pytest.raises(UserError, match="Another training job has started in .*/synthetic after this one"):
            trainer.train(train_reader(experiment, manifest, worker, state.progress.window))
    names = {path.name for path in Path(experiment.checkpoint_folder).iterdir()}
    assert names == {"step-00000005", "step-00000010"}, "the epoch ends at step 12, with a validation"


@pytest.mark.whole_run
def test_sigterm_saves_and_exits_with_a_distinct_code(tmp_path: Path) -> None:
    """A real process receives a real signal. Its run, resumed, ends the same as an undisturbed run."""
    sections = {
        "training": {"epochs": 10, "log_every_steps": 1, "validate_every_steps": 100},
        "checkpoint": {"every_steps": 1000},
    }
    experiment = new_run(tmp_path / "stopped", **sections)
    straight = continued(experiment, tmp_path / "straight", 0, **sections)
    file = tmp_path / "experiment.yaml"
    file.write_text(dump_experiment(experiment))
    command = [sys.executable, "-m", "jobs.cli", "train", str(file)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    lines = Path(experiment.folder) / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (lines.exists() and lines.read_text().count("\n") > 3):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == INTERRUPTED_EXIT_CODE, process.stderr.read() if process.stderr else ""
    assert list((Path(experiment.folder) / "checkpoints").glob("step-*/complete.json"))
    for run_of in (experiment, straight):
        with whole_machine() as worker:
            assert run_on(worker, run_of) == "finished"
    assert_identical(tensors(straight, 120, tmp_path), tensors(experiment, 120, tmp_path))


@contextmanager
def whole_machine() -> Iterator[Worker]:
    """One worker with the threads that the local launcher gives it."""
    with one_worker() as worker:
        torch.set_num_threads(os.cpu_count() or 1)
        yield worker


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"launcher": "local", "workers": 2}, "has one worker; 2 were requested"),
        ({"device": "cuda"}, "torch sees no CUDA device"),
        ({"resume": "/nowhere/step-1"}, "/nowhere/step-1 is not a complete checkpoint"),
    ],
)
def test_arguments_that_cannot_be_met_are_errors(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    if arguments.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    experiment = new_run(tmp_path, training={"device": arguments.pop("device", "cpu")})
    with pytest.raises(UserError, match=message):
        run(experiment, **{"launcher": "local", "workers": None, "resume": "auto", **arguments})
    assert not (Path(experiment.folder) / "metrics.jsonl").exists()


def test_training_without_a_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished feature table .* run `manygate preprocess"):
        run(synthetic.experiment(tmp_path), launcher="local", workers=None, resume="auto")


def test_resume_never_does_not_mix_two_runs(tmp_path: Path) -> None:
    experiment = new_run(tmp_path, training={"max_steps": 2})
    run(experiment, "local", None, "never")
    with pytest.raises(UserError, match="has checkpoints of an earlier run"):
        run(experiment, "local", None, "never")


def diverge(worker: Worker, experiment: Experiment) -> None:
    manifest = read_manifest(experiment.folder + "/table")
    state = fresh_state(experiment, manifest, worker)
    with torch.no_grad():
        for parameter in state.model.module.parameters():
            parameter.fill_(float("nan"))
    validation = split_validation(experiment, state, manifest, worker)
    assert validation is not None
    validation()


def test_an_error_of_the_first_worker_is_raised_on_all(tmp_path: Path, two_workers: WorkerPool) -> None:
    """Metrics are computed on the first worker; if only that one raised the error, the second would wait for ever."""
    with pytest.raises(UserError, match="not finite numbers: training has probably diverged"):
        two_workers.run(diverge, new_run(tmp_path))
    assert two_workers.run(worker_rank) == [0, 1]


def worker_rank(worker: Worker) -> int:
    return worker.rank
