"""Runs of earlier versions work with this version: resumed, evaluated, extended by a day and reported."""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from torch.distributed._shard.sharded_tensor import ShardedTensor

from jobs import inspect
from models.section import ModelSection
from pipeline import documents
from pipeline.checkpoint.arithmetic import changes_since
from pipeline.checkpoint.choice import LATEST, CheckpointChoice
from pipeline.checkpoint.format import find_checkpoint
from pipeline.config.experiment import Experiment
from pipeline.config.load import load_experiment
from pipeline.errors import UserError
from pipeline.preprocess import commit, fit
from pipeline.preprocess.job import preprocess
from pipeline.report.page import write_report
from pipeline.scoring.checkpoint_evaluation import evaluate_on_worker
from pipeline.section import Section
from pipeline.table.manifest import read_manifest
from pipeline.table.settings import check_table_is_of
from pipeline.training.run import fresh_state
from pipeline.training.state import run_settings
from tests.old_runs.copies import FIRST, STEPS, copy_of_run, one_after_the_other, with_next_day
from tests.preprocess.logs import digests
from tests.training.runs import flat, metrics, run_on, tensors
from tests.workers import one_worker


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, as the working directory."""
    copy_of_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    for stage in (fit, commit):
        monkeypatch.setattr(stage, "run_tasks", one_after_the_other)
    return tmp_path


def experiment_of(folder: Path) -> Experiment:
    return load_experiment(folder / "experiment.yaml")


def assert_close(found: Any, expected: Any, path: str = "", tolerance: float = 2e-3) -> None:
    """Equal except for rounding, which differs between kinds of processors, and for its effect on an order.

    Later versions may have more keys.
    """
    if isinstance(expected, dict):
        assert found.keys() >= expected.keys(), path
        for key in expected:
            assert_close(found[key], expected[key], f"{path}/{key}", tolerance)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-4, abs=tolerance), path
    elif isinstance(expected, list):
        assert len(found) == len(expected), path
        for found_part, expected_part in zip(found, expected, strict=True):
            assert_close(found_part, expected_part, path, tolerance)
    else:
        assert found == expected, path


def assert_lines_close(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """The last log line and validation include the last batch of the epoch, whose weight was another one in 0.1.0."""
    assert_close(found[:-2], expected[:-2])
    assert_close(found[-2:], expected[-2:], tolerance=2e-2)


@pytest.mark.parametrize("step", STEPS)
def test_the_loaded_state_equals_the_saved_state(folder: Path, tmp_path: Path, step: int) -> None:
    """Weights, moments of both optimizers and buffers are equal bit by bit; counters and settings are equal too."""
    experiment = experiment_of(folder)
    manifest = read_manifest(experiment.table_folder)
    saved = find_checkpoint("", CheckpointChoice.parse(f"{experiment.checkpoint_folder}/step-{step:08d}"))
    assert saved is not None
    with one_worker() as worker:
        state = fresh_state(experiment, manifest, worker)
        settings = run_settings(experiment, manifest, worker)
        restored = state.restore(saved, settings, manifest.digests("train"))
        loaded = dict(flat(whole(state._tensors())))
        random = torch.get_rng_state()
    stored = tensors(experiment, step, tmp_path)
    assert {name for name in stored if not name.startswith("own/")} == loaded.keys() and len(loaded) > 100
    for name, value in loaded.items():
        assert torch.equal(value, stored[name]), name
    assert torch.equal(random, stored["own/0/rng_cpu/"])
    assert state.progress.step == step and not restored.gained
    assert restored.arithmetic == changes_since(1, experiment), "0.1.0 computed some numbers differently"
    assert not [change for change in restored.changes if not change.startswith("versions.")]


def whole(value: Any) -> Any:
    """Sharded tensors as plain tensors: the only worker has every shard."""
    if isinstance(value, dict):
        return {name: whole(part) for name, part in value.items()}
    return value.local_shards()[0].tensor if isinstance(value, ShardedTensor) else value


def go_back(folder: Path, scratch: Path) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Removes the last checkpoint; returns the metrics lines of the run, and the tensors of that checkpoint."""
    experiment = experiment_of(folder)
    found = without_running_auc(metrics(experiment)), tensors(experiment, STEPS[1], scratch)
    shutil.rmtree(folder / f"run/checkpoints/step-{STEPS[1]:08d}")
    return found


def test_resuming_gives_the_same_result(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """From the middle of the second epoch: the same losses and tensors as in the earlier version.

    Except for the last step of the epoch, on a batch of 27 rows, which counted as one of 32 in that version.
    """
    before = tensors(experiment_of(folder), STEPS[0], tmp_path)
    lines, end = go_back(folder, tmp_path)
    with one_worker() as worker, caplog.at_level(logging.INFO, "pipeline"):
        assert run_on(worker, experiment_of(folder)) == "finished"
    resumed, changed = caplog.messages[caplog.messages.index(next(m for m in caplog.messages if "Resumed" in m)) :][:2]
    assert "with the same samples, but not bit by bit" in resumed and "exactly" not in resumed
    sentences = changes_since(1, experiment_of(folder))
    assert changed == f"An earlier version made this checkpoint. {' '.join(sentences)}"
    caplog.clear()
    with one_worker() as worker, caplog.at_level(logging.INFO, "pipeline"):
        run_on(worker, experiment_of(folder))
    assert "An earlier version" not in caplog.text, "the last checkpoint is of this version"
    assert_lines_close(without_running_auc(metrics(experiment_of(folder))), without_running_auc(lines))
    found = tensors(experiment_of(folder), STEPS[1], tmp_path)
    for name, value in end.items():
        if not name.startswith("own/"):
            moved, other = (value - before[name]).double().norm(), (value - found[name]).double().norm()
            assert other <= (0.4 if "exp_avg" in name else 0.1) * moved + 1e-6, name


def without_running_auc(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the AUC of training, which version 0.1.0 computed with other bins."""
    return [
        {
            **line,
            "tasks": {name: {key: task[key] for key in task if key != "auc"} for name, task in line["tasks"].items()},
        }
        if line["kind"] == "train"
        else line
        for line in lines
    ]


def test_evaluation_gives_the_same_numbers(folder: Path) -> None:
    expected = json.loads((folder / "run/evaluation-test.json").read_text())
    with one_worker() as worker:
        found = evaluate_on_worker(worker, experiment_of(folder), LATEST, "test")
    assert found is not None
    numbers = {key: value for key, value in json.loads(json.dumps(found)).items() if key != "inputs"}
    assert_close({**numbers, "checkpoint": expected["checkpoint"]}, expected)


def test_the_run_is_extended_by_a_day(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each split moves forward by a day: users that were rare get ids; training continues with the new train day."""
    later, before, lines = with_next_day(folder), digests(folder / "run/table"), metrics(experiment_of(folder))
    old = read_manifest(later.table_folder)
    with caplog.at_level(logging.INFO):
        manifest = preprocess(later, later.table_folder)
        assert_extended(folder, before, old.table_rows, manifest.table_rows)
        assert (manifest.fingerprint, manifest.lineage) == (old.fingerprint, old.lineage)
        with one_worker() as worker:
            assert run_on(worker, later) == "finished"
    assert "Continuing with the new partitions of the train split: 3; the schedule starts again." in caplog.text
    assert metrics(later)[: len(lines)] == lines and metrics(later)[-1]["step"] == 18


def assert_extended(folder: Path, before: dict[str, str], old: dict[str, int], new: dict[str, int]) -> None:
    after = digests(folder / "run/table")
    kept = [path for path in before if path.startswith(("settings.json", "train/", "partitions/train-"))]
    assert len(kept) == 7 and {path: after[path] for path in kept} == {path: before[path] for path in kept}
    assert new["user"] > old["user"] and new.keys() == old.keys()


def test_the_run_is_inspected_and_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect.run("run")
    text = capsys.readouterr().out
    assert "Checkpoint run/checkpoints/step-00000008" in text and "model bottom din, trunk aesm, head towers" in text
    assert "train: 2 partitions, 200 = 187 + 1 + 12 rows" in text
    page = Path(write_report("run")).read_text()
    for title in ("Metrics", "Learning curves", "Calibration", "Use of the experts", "Comparison"):
        assert f">{title}</h2>" in page


@pytest.fixture
def wider_schema() -> Iterator[None]:
    """Adds a key with a default to every section of the experiment file."""
    named = list(dict.fromkeys(type(section) for section in sections_of(experiment_of(FIRST))))
    for section in named:
        section.__pydantic_fields__["added_later"] = FieldInfo(annotation=int, default=7)
    rebuild_sections()
    yield
    for section in named:
        del section.__pydantic_fields__["added_later"]
    rebuild_sections()


def sections_of(value: Any) -> Iterator[BaseModel]:
    """All sections in the experiment file: default values of other sections were made before the key was added."""
    if isinstance(value, BaseModel):
        yield value
        for name in value.model_fields_set:
            yield from sections_of(value.__dict__[name])
    elif isinstance(value, list):
        for part in value:
            yield from sections_of(part)


def rebuild_sections() -> None:
    """Rebuilds once per nesting level: a rebuilt section uses the schemas that its parts have at that moment."""
    for _ in range(5):
        for section in subclasses(Section) | subclasses(ModelSection):
            section.model_rebuild(force=True)
    documents._adapter.cache_clear()


def subclasses(of: type[BaseModel]) -> set[type[BaseModel]]:
    return {below for child in of.__subclasses__() for below in (child, *subclasses(child))}


def test_old_runs_still_work_after_a_key_is_added(folder: Path, tmp_path: Path, wider_schema: None) -> None:
    """With one new key in every section, the run is resumed, extended and evaluated; no file of the table changes."""
    experiment = experiment_of(folder)
    assert experiment.training.added_later == experiment.features[0].added_later == 7
    lines, _ = go_back(folder, tmp_path)
    before, old = digests(folder / "run/table"), read_manifest(experiment.table_folder)
    with one_worker() as worker:
        assert preprocess(experiment, experiment.table_folder) == old and digests(folder / "run/table") == before
        assert run_on(worker, experiment) == "finished"
        assert_lines_close(metrics(experiment), lines)
        later = with_next_day(folder)
        manifest = preprocess(later, later.table_folder)
        assert_extended(folder, before, old.table_rows, manifest.table_rows)
        check_table_is_of(later, later.table_folder, manifest)
        assert run_on(worker, later) == "finished" and metrics(later)[-1]["step"] == 18
        assert evaluate_on_worker(worker, later, LATEST, "test") is not None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("features.user.added_later=8", "made with other settings: features.user.added_later: 7 -> 8"),
        ("table.added_later=8", "made with other settings: table.added_later: 7 -> 8"),
    ],
)
def test_another_value_of_an_added_key_requires_another_table(
    folder: Path, wider_schema: None, override: str, message: str
) -> None:
    other = load_experiment(folder / "experiment.yaml", [override])
    with pytest.raises(UserError, match=message):
        preprocess(other, other.table_folder)


def test_another_value_of_an_added_key_requires_another_model(folder: Path, wider_schema: None) -> None:
    other = load_experiment(folder / "experiment.yaml", ["model.trunk.added_later=8"])
    with one_worker() as worker, pytest.raises(UserError, match="another model: model.trunk.added_later: 7 -> 8"):
        run_on(worker, other)
