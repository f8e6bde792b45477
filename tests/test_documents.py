"""Documents of earlier versions are read with and without every key that has a default; newer ones are refused."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from pipeline.checkpoint.arithmetic import CHANGES, VERSION, changes_since
from pipeline.checkpoint.checks import changes, check_resume
from pipeline.checkpoint.choice import CheckpointChoice
from pipeline.checkpoint.format import Checkpoint, find_checkpoint
from pipeline.checkpoint.state_document import CheckpointState
from pipeline.config.load import load_experiment, read_experiment
from pipeline.errors import UserError
from pipeline.evaluation.evaluation import read_evaluation
from pipeline.preprocess import commit, fit
from pipeline.preprocess.job import preprocess
from pipeline.report.page import read_run
from pipeline.table.encoder_index import EncoderIndex, read_index
from pipeline.table.manifest import Manifest, read_manifest
from pipeline.table.partition_record import read_records
from pipeline.table.settings import TableSettings, check_table_is_of, fingerprint, fingerprint_of_ids, read_settings
from tests.old_runs.copies import FIRST, STEPS, first_run, one_after_the_other

KeyPath = tuple[str | int, ...]
RUN, TABLE = FIRST / "run", FIRST / "run/table"
CHECKPOINT = f"checkpoints/step-{STEPS[0]:08d}"
KEYS = {"window": "span"}  # attribute -> key on disk, where they differ


def optional_keys(value: Any, data: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Paths of all keys in the JSON of a value that have their default."""
    if isinstance(value, list):
        for i, part in enumerate(value):
            yield from optional_keys(part, data[i], (*path, i))
    for name, part, default in fields_of(value):
        if name in data and part == default:
            yield (*path, name)
        if name in data:
            yield from optional_keys(part, data[name], (*path, name))


def fields_of(value: Any) -> list[tuple[str, Any, Any]]:
    """Key on disk, value and default of each field of a section or of a dataclass."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields.items()
        return [(name, value.__dict__[name], field.get_default(call_default_factory=True)) for name, field in fields]
    if not dataclasses.is_dataclass(value):
        return []
    found = []
    for field in dataclasses.fields(value):
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        found.append((KEYS.get(field.name, field.name), value.__dict__[field.name], default))
    return found


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def without(data: Any, path: KeyPath) -> Any:
    """A copy of some JSON without one key."""
    copy = json.loads(json.dumps(data))
    *parents, last = path
    at = copy
    for part in parents:
        at = at[part]
    del at[last]
    return copy


def checkpoint(run: Path) -> Checkpoint:
    found = find_checkpoint(str(run / "checkpoints"), CheckpointChoice.parse(str(run / CHECKPOINT)))
    assert found is not None
    return found


def settings() -> TableSettings:
    read = read_settings(str(TABLE))
    assert read is not None
    return read


def names(paths: Iterator[KeyPath]) -> Any:
    return pytest.mark.parametrize("path", [pytest.param(path, id=".".join(map(str, path))) for path in paths])


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return first_run(tmp_path, monkeypatch)


@names(optional_keys(settings().meaning, settings().document))
def test_a_table_made_before_a_key_existed_is_continued(run: Path, path: KeyPath) -> None:
    """The table, its records and its checkpoints keep the fingerprint of the original settings."""
    experiment = load_experiment("experiment.yaml")
    remove_key(run, path)
    files = {file: file.read_bytes() for file in (run / "table").rglob("*.json")}
    manifest = read_manifest(experiment.table_folder)
    assert preprocess(experiment, experiment.table_folder) == manifest
    assert files == {file: file.read_bytes() for file in (run / "table").rglob("*.json")}
    check_table_is_of(experiment, experiment.table_folder, manifest)


@pytest.mark.parametrize("path", [("features", 0, "shares"), ("logs", "unreadable_files"), ("tasks", 0, "scale")])
def test_a_table_made_before_a_key_existed_may_be_rebuilt(
    run: Path, monkeypatch: pytest.MonkeyPatch, path: KeyPath
) -> None:
    """Equal settings and equal logs give the table that the checkpoints were trained on, with the same fingerprints."""
    for stage in (fit, commit):
        monkeypatch.setattr(stage, "run_tasks", one_after_the_other)
    experiment, table = load_experiment("experiment.yaml"), run / "table"
    original = read_manifest(str(table))
    assert without_content(preprocess(experiment, str(table), overwrite=True)) == original
    remove_key(run, path)
    earlier = read_json(table / "settings.json")
    sizes = {record.partition.value: record.log_files or {} for record in read_records(str(table), "")}
    lineage = fingerprint_of_ids(earlier, {value: sizes[value] for value in ("1", "2")})
    made = without_content(preprocess(experiment, str(table), overwrite=True))
    assert read_json(table / "settings.json") == earlier
    assert made == dataclasses.replace(original, fingerprint=fingerprint(earlier), lineage=lineage)


def without_content(manifest: Manifest) -> Manifest:
    """Earlier versions did not count what the rows contain."""
    parts = [dataclasses.replace(partition, content=None) for partition in manifest.partitions]
    return dataclasses.replace(manifest, partitions=parts)


def test_old_settings_may_have_a_key_that_no_longer_affects_the_table(run: Path) -> None:
    file = run / "table/settings.json"
    data = read_json(file)
    data["tasks"][0]["weight"] = 3.0
    file.write_text(json.dumps(data))
    read = read_settings(str(run / "table"))
    assert read is not None and read.meaning == settings().meaning


def remove_key(run: Path, path: KeyPath) -> None:
    """Makes a table look as if it was written by a version without a key."""
    table = run / "table"
    earlier = without(read_json(table / "settings.json"), path)
    (table / "settings.json").write_text(json.dumps(earlier))
    made_with = fingerprint({name: earlier[name] for name in ("scenarios", "tasks")})
    for record in (table / "partitions").iterdir():
        record.write_text(json.dumps(read_json(record) | {"made_with": made_with}))
    manifest = read_json(table / "manifest.json") | {"fingerprint": fingerprint(earlier)}
    (table / "manifest.json").write_text(json.dumps(manifest))


@names(optional_keys(checkpoint(RUN).state(), read_json(RUN / CHECKPOINT / "state.json")))
def test_a_checkpoint_made_before_a_key_existed_is_resumed_exactly(run: Path, path: KeyPath) -> None:
    now, file = checkpoint(RUN).state(), run / CHECKPOINT / "state.json"
    file.write_text(json.dumps(without(read_json(file), path)))
    earlier = checkpoint(run).state()
    train = read_manifest(str(TABLE)).digests("train")
    assert not check_resume(checkpoint(run), earlier, now, earlier.progress, train)
    assert changes(earlier, now) == [] and earlier == now


def test_the_arithmetic_of_a_checkpoint_is_recorded(run: Path) -> None:
    """A checkpoint that does not name the arithmetic that it was trained with has the first one."""
    state = checkpoint(run).state()
    assert "arithmetic" not in read_json(run / CHECKPOINT / "state.json") and state.arithmetic == 1
    assert CheckpointState.of(state, state.progress).to_json()["arithmetic"] == VERSION
    sentences = changes_since(1, state.experiment)
    assert sentences and all(re.fullmatch(r"[A-Z].*\.", sentence) for sentence in sentences)
    assert changes_since(VERSION, state.experiment) == []
    assert max(change.since for change in CHANGES) <= VERSION


def test_a_checkpoint_of_a_newer_arithmetic_is_refused(run: Path) -> None:
    file = run / CHECKPOINT / "state.json"
    file.write_text(json.dumps({**read_json(file), "arithmetic": VERSION + 1}))
    with pytest.raises(UserError, match=r"state.json cannot be read .*arithmetic"):
        checkpoint(run).state()


def manifest() -> Manifest:
    return read_manifest(str(TABLE))


@names(optional_keys(manifest(), read_json(TABLE / "manifest.json")))
def test_a_manifest_without_a_key_is_read(run: Path, path: KeyPath) -> None:
    file = run / "table/manifest.json"
    file.write_text(json.dumps(without(read_json(file), path)))
    assert read_manifest(str(run / "table")) == manifest()


def index(table: Path) -> EncoderIndex:
    read = read_index(str(table))
    assert read is not None
    return read


@names(optional_keys(index(TABLE), read_json(TABLE / "encoders/encoders.json")))
def test_an_encoder_index_without_a_key_is_read(run: Path, path: KeyPath) -> None:
    file = run / "table/encoders/encoders.json"
    file.write_text(json.dumps(without(read_json(file), path)))
    assert index(run / "table") == index(TABLE)


def test_an_encoder_index_from_before_extensions_is_read(run: Path) -> None:
    file = run / "table/encoders/encoders.json"
    file.write_text(json.dumps(read_json(file)["encoders"]))
    assert index(run / "table") == EncoderIndex(index(TABLE).encoders)


RECORD = "partitions/train-1.json"


@names(optional_keys(read_records(str(TABLE), "")[1].partition, read_json(TABLE / RECORD)))
def test_a_record_without_a_key_is_read(run: Path, path: KeyPath) -> None:
    file = run / "table" / RECORD
    file.write_text(json.dumps(without(read_json(file), path)))
    assert read_records(str(run / "table"), "") == read_records(str(TABLE), "")


def test_an_early_record_has_the_settings_of_its_table(run: Path) -> None:
    file = run / "table" / RECORD
    file.write_text(json.dumps(without(without(read_json(file), ("made_with",)), ("log_files",))))
    record, expected = (read_records(str(table), settings().made_with)[1] for table in (run / "table", TABLE))
    assert record == dataclasses.replace(expected, log_files=None)


def test_an_experiment_of_a_run_without_a_key_is_read(run: Path) -> None:
    whole = yaml.safe_load((run / "experiment.yaml").read_text())
    expected = read_experiment(str(RUN / "experiment.yaml"))
    paths = list(optional_keys(expected, whole))
    assert len(paths) > 50
    for path in paths:
        (run / "experiment.yaml").write_text(yaml.safe_dump(without(whole, path)))
        assert read_experiment(str(run / "experiment.yaml")) == expected, path


@pytest.mark.parametrize("key", ["split", "checkpoint", "reliability", "experts"])
def test_an_evaluation_without_a_key_has_a_page(run: Path, key: str) -> None:
    file = run / "evaluation-test.json"
    file.write_text(json.dumps(without(read_json(file), (key,))))
    assert read_run(str(run)).evaluations["test"].rows == 93


def test_a_metric_that_an_earlier_version_did_not_measure_is_undefined(run: Path) -> None:
    from pipeline.report.tables import metric_tables
    from pipeline.report.text import format_evaluation

    file = run / "evaluation-test.json"
    data = read_json(file)
    for cell in data["tasks"]["click"]["scenarios"].values():
        del cell["log_loss"]
    del data["tasks"]["click"]["macro_auc"]
    file.write_text(json.dumps(data))
    evaluation = read_evaluation(str(file))
    assert evaluation is not None
    text = format_evaluation(evaluation)
    assert "mean AUC of scenarios -" in text
    (table,) = [table for table in metric_tables(evaluation) if table.title == "click"]
    column = table.columns.index("log loss ↓")
    assert {row[column].text for label, row in table.rows.items() if label != "all"} == {"-"}
