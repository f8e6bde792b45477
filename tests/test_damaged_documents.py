"""Documents that are newer, damaged or incomplete are refused with advice, and cost no other file."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.checkpoint.format import check_claim, complete_checkpoints
from pipeline.checkpoint.state_document import CheckpointState
from pipeline.config.load import load_experiment, read_experiment
from pipeline.errors import UserError
from pipeline.evaluation.evaluation import read_evaluation
from pipeline.preprocess import commit
from pipeline.preprocess.job import preprocess
from pipeline.report.comparison_document import read_comparison
from pipeline.report.page import read_run
from pipeline.table.encoder_index import read_index
from pipeline.table.manifest import read_manifest
from pipeline.table.partition_record import read_records
from pipeline.table.settings import TableSettings, read_settings
from pipeline.training.metrics_log import MetricsLog
from tests.old_runs.copies import first_run, one_after_the_other
from tests.test_documents import CHECKPOINT, RECORD, KeyPath, checkpoint, manifest, read_json, without


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return first_run(tmp_path, monkeypatch)


@dataclass(frozen=True)
class OnDisk:
    """A document of the run, and a function that reads it."""

    file: str
    read: Callable[[Path], object]


DOCUMENTS = [
    OnDisk("table/settings.json", lambda run: read_settings(str(run / "table"))),
    OnDisk("table/manifest.json", lambda run: read_manifest(str(run / "table"))),
    OnDisk("table/encoders/encoders.json", lambda run: read_index(str(run / "table"))),
    OnDisk("table/partitions/train-1.json", lambda run: read_records(str(run / "table"), "")),
    OnDisk(f"{CHECKPOINT}/state.json", lambda run: checkpoint(run).state()),
    OnDisk(f"{CHECKPOINT}/complete.json", checkpoint),
    OnDisk("owner.json", lambda run: check_claim(str(run), "")),
    OnDisk("evaluation-test.json", lambda run: read_evaluation(str(run / "evaluation-test.json"))),
    OnDisk("compare.json", lambda run: read_comparison(str(run / "compare.json"))),
    OnDisk("experiment.yaml", lambda run: read_experiment(str(run / "experiment.yaml"))),
]
JSON_DOCUMENTS = DOCUMENTS[:-1]


@pytest.mark.parametrize("document", JSON_DOCUMENTS, ids=lambda document: document.file)
def test_a_newer_document_is_refused(run: Path, document: OnDisk) -> None:
    file = run / document.file
    file.write_text(json.dumps({**read_json(file), "version": 99}))
    expected = (
        f"{file.name} has version 99, but this version of Manygate reads versions up to 1: it was written by a newer "
        "Manygate. "
    )
    with pytest.raises(UserError, match=f"{expected}Use that version, or .*"):
        document.read(run)


@pytest.mark.parametrize("document", DOCUMENTS[:7], ids=lambda document: document.file)
def test_a_key_that_only_another_version_knows_is_refused(run: Path, document: OnDisk) -> None:
    file = run / document.file
    file.write_text(json.dumps({**read_json(file), "unheard_of": 1}))
    with pytest.raises(UserError, match=rf"{file.name} cannot be read by .*unheard_of is an unknown key\. "):
        document.read(run)


def test_an_experiment_with_a_removed_key_is_refused(run: Path) -> None:
    file = run / CHECKPOINT / "state.json"
    state = read_json(file)
    state["experiment"]["model"]["trunk"]["shortcut"] = True
    file.write_text(json.dumps(state))
    with pytest.raises(
        UserError, match=r"state.json cannot be read .*: experiment\.model\.trunk\.\S*shortcut is an unknown key"
    ):
        checkpoint(run).state()
    whole = yaml.safe_load((run / "experiment.yaml").read_text())
    (run / "experiment.yaml").write_text(yaml.safe_dump({**whole, "shortcut": True}))
    with pytest.raises(UserError, match=r"shortcut: unknown key; .*\n.*another version .*: use that version"):
        read_experiment(str(run / "experiment.yaml"))


def without_later_keys(document: Any, earlier: Any) -> Any:
    """The document without the keys that an earlier version's document does not have."""
    if isinstance(document, dict) and isinstance(earlier, dict):
        return {key: without_later_keys(part, earlier[key]) for key, part in document.items() if key in earlier}
    if isinstance(document, list) and isinstance(earlier, list) and len(document) == len(earlier):
        return [without_later_keys(*parts) for parts in zip(document, earlier, strict=True)]
    return document


def test_documents_are_written_as_the_earlier_version_wrote_them(run: Path) -> None:
    """A document that is read and converted back to JSON has every key of the original with the same value."""
    state = checkpoint(run).state()
    for document, file in (
        (CheckpointState.of(state, state.progress).to_json(), f"{CHECKPOINT}/state.json"),
        (dataclasses.asdict(manifest()), "table/manifest.json"),
        (TableSettings.of(state.experiment).document, "table/settings.json"),
    ):
        original = read_json(run / file)
        assert without_later_keys(document, original) == original


def damages(text: str) -> dict[str, bytes]:
    """Contents that a damaged disk, another program or an editor may leave in place of a document."""
    whole = text.encode()
    return {
        "empty": b"",
        "cut off": whole[: len(whole) // 2],
        "null": b"null",
        "a list": b"[1]",
        "an empty object": b"{}",
        "a text": b'"text"',
        "a number": b"7",
        "zeros": bytes(200),
        "garbage": bytes(range(256)),
        "UTF-16": text.encode("utf-16"),
        "Latin-1": b"\xe9: 1\n" + whole,
        "endless brackets": b"[" * 100_000,
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.file)
def test_a_damaged_document_is_refused_or_was_never_written(run: Path, document: OnDisk) -> None:
    file = run / document.file
    for name, content in damages(file.read_text()).items():
        if (document.file, name) == ("experiment.yaml", "endless brackets"):  # PyYAML itself fails
            continue
        file.write_bytes(content)
        assert_read_or_refused(run, document, name)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.file)
def test_a_document_with_a_missing_key_or_a_wrong_type_is_refused(run: Path, document: OnDisk) -> None:
    file = run / document.file
    data = yaml.safe_load(file.read_text())
    for path in paths_in(data):
        file.write_text(json.dumps(without(data, path)))
        assert_read_or_refused(run, document, f"without {path}")
        for value in (None, "text", 7, True, [], {}, [None], {"a": None}):
            file.write_text(json.dumps(replaced(data, path, value)))
            assert_read_or_refused(run, document, f"{path} = {value}")


def assert_read_or_refused(run: Path, document: OnDisk, damage: str) -> None:
    """Any other error than a UserError fails the test."""
    try:
        document.read(run)
    except UserError:
        return
    except Exception as error:
        raise AssertionError(f"{document.file}, {damage}") from error


def paths_in(data: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Paths of keys and of the first elements of lists, down to the fourth level; of large parts only the first."""
    parts: list[tuple[str | int, Any]] = list(enumerate(data[:1])) if isinstance(data, list) else []
    if isinstance(data, dict):
        parts = list(data.items())[: 2 if path else None]
    for key, part in parts:
        yield (*path, key)
        if len(path) < 3:
            yield from paths_in(part, (*path, key))


def replaced(data: Any, path: KeyPath, value: Any) -> Any:
    """A copy of some JSON with another value at a path."""
    copy = json.loads(json.dumps(data))
    *parents, last = path
    at = copy
    for part in parents:
        at = at[part]
    at[last] = value
    return copy


@pytest.mark.parametrize(
    "key", ["rows", "tasks", "tasks.click.kind", "reliability.click.all.observed", "experts.tab 1.weight"]
)
def test_a_missing_key_of_an_evaluation_is_named(run: Path, key: str) -> None:
    file = run / "evaluation-test.json"
    file.write_text(json.dumps(without(read_json(file), tuple(key.split(".")))))
    with pytest.raises(UserError, match=f"evaluation-test.json cannot be read .*: {key} is missing.* evaluate again"):
        read_run(str(run))


@pytest.mark.parametrize("key", ["split", "seeds", "baseline", "metric_of_task", "variants", "variants.aesm.tasks"])
def test_a_missing_key_of_a_comparison_is_named(run: Path, key: str) -> None:
    file = run / "compare.json"
    file.write_text(json.dumps(without(read_json(file), tuple(key.split(".")))))
    with pytest.raises(UserError, match=f"compare.json cannot be read .*: {key} is missing.* compare again"):
        read_run(str(run))


def test_lines_of_metrics_that_are_damaged_are_left_out(run: Path) -> None:
    whole = read_run(str(run)).records
    file = run / "metrics.jsonl"
    file.write_bytes(b'\xff\x00\n7\nnull\n{}\n["kind"]\n' + file.read_bytes() + b'{"kind": "train", "st')
    assert read_run(str(run)).records == whole
    MetricsLog(str(file), resumed_step=10_000)
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()]


@pytest.mark.parametrize("name", ["settings.json", "manifest.json", "encoders/encoders.json"])
def test_a_damaged_document_of_a_table_costs_no_file(run: Path, name: str) -> None:
    """With nothing to do for preprocessing: it refuses the table, or writes the same document again."""
    table, experiment = run / "table", load_experiment("experiment.yaml")
    file = table / name
    files, text = contents(table), file.read_text()
    data = json.loads(text)
    again = [json.dumps(without(data, (key,))).encode() for key in data if key != "lineage"]
    again += [json.dumps({**data, "version": 99}).encode(), json.dumps({**data, "generation": 7}).encode()]
    for content in (*damages(text).values(), *again):
        file.write_bytes(content)
        try:
            preprocess(experiment, str(table))
        except UserError:
            assert contents(table) == {**files, name: content}
        else:
            assert contents(table).keys() == files.keys()
        file.write_text(text)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def as_before(data: Any, before: Any) -> Any:
    """Some JSON without the keys that an earlier version of the document does not have."""
    if isinstance(before, dict) and before:
        return {key: as_before(data[key], part) for key, part in before.items()}
    if isinstance(before, list) and len(before) == len(data):
        return [as_before(part, part_before) for part, part_before in zip(data, before, strict=True)]
    return data


def test_an_index_of_encoders_that_describes_other_encoders_is_refused(run: Path) -> None:
    experiment = load_experiment("experiment.yaml")
    file = run / "table/encoders/encoders.json"
    for path in (("encoders", "user"), ("encoders", "user", "rows")):
        text = file.read_text()
        file.write_text(json.dumps(without(json.loads(text), path)))
        with pytest.raises(UserError, match="encoders.json (describes other encoders|cannot be read .* is missing)"):
            preprocess(experiment, str(run / "table"))
        file.write_text(text)
    file.write_text("")
    with pytest.raises(UserError, match=r"partitions, but no readable encoders/encoders.json .* with --overwrite"):
        preprocess(experiment, str(run / "table"))


def test_a_partition_with_a_damaged_record_is_rebuilt_or_kept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rebuilt from its logs; without logs, its files are kept and the record is named."""
    monkeypatch.setattr(commit, "run_tasks", one_after_the_other)
    table, experiment = run / "table", load_experiment("experiment.yaml")
    files = contents(table)
    (table / RECORD).write_text("")
    preprocess(experiment, str(table))
    rebuilt = contents(table)
    for name in (RECORD, "manifest.json"):
        assert as_before(json.loads(rebuilt[name]), json.loads(files[name])) == json.loads(files[name])
    changed = {name for name in files if files[name] != rebuilt[name]}
    assert rebuilt.keys() == files.keys() and changed <= {RECORD, "manifest.json"}

    files = rebuilt
    (table / RECORD).write_text("")
    shutil.move("log/day=1", "day=1")
    with pytest.raises(UserError, match=r"train-1.json is damaged, and .*log has no files to rebuild .*delete the dam"):
        preprocess(experiment, str(table))
    assert contents(table) == {**files, RECORD: b""}
    (table / RECORD).unlink()
    assert {partition.value for partition in preprocess(experiment, str(table)).split("train")} == {"2"}


def test_a_marker_of_a_newer_version_is_refused_and_not_overwritten(run: Path) -> None:
    file = run / CHECKPOINT / "complete.json"
    for newer in ({"version": 2}, {"version": 2, "step": 8}, {"version": 2, "at": 8, "parts": {}}):
        file.write_text(json.dumps(newer))
        with pytest.raises(UserError, match="complete.json has version 2, .* by a newer Manygate"):
            complete_checkpoints(str(run / "checkpoints"))
    file.write_text(json.dumps({"step": 8}))
    with pytest.raises(UserError, match="saved by an earlier version of Manygate, without checksums"):
        complete_checkpoints(str(run / "checkpoints"))
