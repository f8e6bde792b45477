"""Nothing outside of a table or a run is deleted or read, whatever names an experiment or a document has."""

import ast
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.checkpoint.choice import CheckpointChoice
from pipeline.checkpoint.format import find_checkpoint
from pipeline.config.load import load_experiment
from pipeline.errors import UserError
from pipeline.preprocess import commit, fit
from pipeline.preprocess.job import preprocess
from pipeline.table.encoder_index import read_index
from pipeline.table.manifest import read_manifest
from pipeline.table.partition_record import read_records
from pipeline.table_folder import TAKEN
from tests.old_runs.copies import FIRST, STEPS, one_after_the_other, with_next_day
from tests.preprocess.logs import digests
from tests.training.runs import new_run, run_on
from tests.workers import one_worker

OUTSIDE = ["..", "../x", "../../log", "/etc", "a/b", "a/../b", ".", "", "./a", "a/", "s3://x/y", "x\0y", "a\\..\\b"]
ODD = ["Test", "test-2024", "v1.5", "hold out", "проверка", "测试", "_later", "a@b", "x(1)", "1"]
PIECES = st.sampled_from(
    ["..", ".", "/", "//", "a", "log", "train", "day=1", "://", "~", "\\", "\0", "%2e", "%2F", " "]
)
NAMES = st.one_of(st.text(max_size=12), st.lists(PIECES, max_size=6).map("".join), st.sampled_from(OUTSIDE))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the first version's run without its tensors, in the working directory."""
    shutil.copytree(FIRST, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for stage in (fit, commit):
        monkeypatch.setattr(stage, "run_tasks", one_after_the_other)
    return tmp_path / "run"


def with_split(name: str) -> Any:
    """The experiment of the run with another name for its test split."""
    splits = {"train": [1, 2], "valid": [3, 3], name: [4, 4]}
    return load_experiment(FIRST / "experiment.yaml", [f"logs.splits={json.dumps(splits)}"])


@pytest.mark.parametrize("name", [*OUTSIDE, ".hidden", "<script>", "a?b", "a#b", "a\nb", "-x", "a=b", "a|b"])
def test_a_split_that_is_no_plain_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"logs: the split .* would be a folder of that name: use letters, digits"):
        with_split(name)


@pytest.mark.parametrize("name", [*TAKEN, *(name.upper() for name in TAKEN)])
def test_a_split_with_a_name_of_the_table_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"logs: the split '{name}' cannot have this name, which is taken"):
        with_split(name)


@given(NAMES)
@settings(max_examples=500, deadline=None)
def test_every_split_is_a_folder_of_its_own_in_the_table(name: str) -> None:
    try:
        with_split(name)
    except UserError:
        return
    assert os.path.normpath(f"/runs/table/{name}") == f"/runs/table/{name}" and Path("/runs/table", name).name == name
    assert name.casefold() not in TAKEN


@pytest.mark.parametrize("name", ODD)
def test_tables_with_odd_names_of_splits_are_read(run: Path, name: str) -> None:
    """Names that earlier versions accepted and that do no harm."""
    rename_test_split(run, name)
    experiment = with_split(name)
    assert [p.value for p in preprocess(experiment, experiment.table_folder).split(name)] == ["4"]


def rename_test_split(run: Path, name: str) -> None:
    table = run / "table"
    (table / "test").rename(table / name)
    for file in (table / "manifest.json", table / "partitions/test-4.json"):
        text = file.read_text().replace('"test"', json.dumps(name)).replace('"test/', f'"{json.dumps(name)[1:-1]}/')
        file.write_text(text)
    (table / "partitions/test-4.json").rename(table / f"partitions/{name}-4.json")


@pytest.mark.parametrize("name", ["a/b", "../x", "x\0"])
def test_a_partition_column_with_a_slash_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"logs\.partition: .* part of the name of a folder COLUMN=VALUE"):
        load_experiment(FIRST / "experiment.yaml", [f"logs.partition={json.dumps(name)}"])


def test_the_list_of_taken_names_is_complete(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name that preprocessing makes in a table, while it works and afterwards, is that of a split or taken."""
    table, seen = run / "table", set()

    def watched(*arguments: Any) -> Iterator[Any]:
        for done in one_after_the_other(*arguments):
            seen.update(storage.list_folder(str(table)))
            yield done

    for stage in (fit, commit):
        monkeypatch.setattr(stage, "run_tasks", watched)
    for experiment, overwrite in ((with_split("test"), True), (with_next_day(run.parent), False)):
        preprocess(experiment, experiment.table_folder, overwrite=overwrite)
        seen.update(storage.list_folder(str(table)))
    assert seen == {"train", "valid", "test", *TAKEN} - {"experiment.yaml"}


# Documents of other people: where a name or a path is in each, and how it is read.

READERS: dict[str, tuple[str, Callable[[Path], Any], list[Callable[[Any, str], Any]]]] = {
    "record": (
        "table/partitions/train-1.json",
        lambda run: read_records(str(run / "table"), ""),
        [
            lambda data, text: data.update(split=text),
            lambda data, text: data["lanes"][0][0].update(path=text),
            lambda data, text: data.update(log_files={text: 1}),
            lambda data, text: data.update(skipped_files=[text]),
        ],
    ),
    "manifest": (
        "table/manifest.json",
        lambda run: read_manifest(str(run / "table")),
        [
            lambda data, text: data["partitions"][0].update(split=text),
            lambda data, text: data["partitions"][0]["lanes"][0][0].update(path=text),
            lambda data, text: data["partitions"][0].update(skipped_files=[text]),
        ],
    ),
    "index": (
        "table/encoders/encoders.json",
        lambda run: read_index(str(run / "table")),
        [lambda data, text: data["encoders"].update({text: {"kind": "vocabulary", "rows": 3}})],
    ),
    "marker": (
        f"checkpoints/step-{STEPS[0]:08d}/complete.json",
        lambda run: find_checkpoint("", CheckpointChoice.parse(str(run / f"checkpoints/step-{STEPS[0]:08d}"))),
        [lambda data, text: data["files"].update({text: {"bytes": 1, "crc32": 1}})],
    ),
}


@pytest.mark.parametrize("document", READERS)
@pytest.mark.parametrize("text", ["../x", "/etc/passwd", "s3://bucket/x", "a/../../x", "", ".."])
def test_a_path_out_of_the_folder_is_refused_when_a_document_is_read(run: Path, document: str, text: str) -> None:
    file, read, places = READERS[document]
    original = (run / file).read_text()
    for put in places:
        data = json.loads(original)
        put(data, text)
        (run / file).write_text(json.dumps(data))
        with pytest.raises(UserError, match=r"cannot be read by this version .*(is outside of|is not the name|split)"):
            read(run)
    (run / file).write_text(original)
    assert read(run)


@pytest.mark.parametrize("document", ["record", "manifest"])
@pytest.mark.parametrize("text", ["../x", "/x", "a/../../../log", "\0"])
def test_a_value_with_a_slash_is_refused_when_a_document_is_read(run: Path, document: str, text: str) -> None:
    file, read, _ = READERS[document]
    data = json.loads((run / file).read_text())
    (data if document == "record" else data["partitions"][0])["value"] = text
    (run / file).write_text(json.dumps(data))
    with pytest.raises(UserError, match="part of the name of a folder COLUMN=VALUE and cannot contain a slash"):
        read(run)


def test_preprocessing_on_a_table_of_somebody_else_deletes_nothing_outside(run: Path) -> None:
    experiment = load_experiment("experiment.yaml")
    before = digests(run.parent / "log")
    data = json.loads((run / "table/partitions/train-1.json").read_text())
    for name in ("../../log", "../../../" + run.parent.name + "/log"):
        record = {**data, "split": name, "value": "9"}
        (run / "table/partitions/x.json").write_text(json.dumps(record))
        with pytest.raises(UserError, match=r"partitions/x.json cannot be read .* would be a folder of that name"):
            preprocess(experiment, experiment.table_folder)
    assert digests(run.parent / "log") == before


# Deleting


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def make_tree(folder: Path) -> Path:
    """A folder `root` with links out of it, and files beside it; returns `root`."""
    root = folder / "root"
    for path in ("a/day=1/f", "a/f", "day=1/f", "..f"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
        (folder / "log" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "log" / path).touch()
    (root / "link").symlink_to(folder / "log")
    (root / "up").symlink_to("..")
    return root


LINKED = st.lists(
    st.sampled_from(["..", ".", "a", "log", "day=1", "f", "..f", "link", "up", "root", "", "%2e%2e"]), max_size=5
).map("/".join)


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_deleting_stays_inside(tmp_path: Path, prefix: str) -> None:
    root = make_tree(tmp_path)
    outside = tree(tmp_path) - {"root"} - {f"root/{path}" for path in tree(root)}
    assert len(outside) > 5

    @given(st.one_of(LINKED, NAMES), st.sampled_from([storage.delete_folder, storage.delete_file]))
    @settings(max_examples=400, deadline=None)
    def check(path: str, delete: Callable[[str, str], None]) -> None:
        try:
            delete(prefix + str(root), path)
        except UserError as error:
            assert "outside of" in str(error) or "options of a URI" in str(error)
        assert root.exists() and outside <= tree(tmp_path), path
        make_tree_again(tmp_path)

    check()


def make_tree_again(folder: Path) -> None:
    shutil.rmtree(folder / "root")
    shutil.rmtree(folder / "log")
    make_tree(folder)


def test_a_link_is_deleted_and_not_what_it_leads_to(tmp_path: Path) -> None:
    root = make_tree(tmp_path)
    with pytest.raises(UserError, match=r"root/link/day=1 is outside of .*/root, by its name or through a link"):
        storage.delete_folder(str(root), "link/day=1")
    with pytest.raises(UserError, match=r"root/up/log is outside of"):
        storage.delete_folder(str(root), "up/log")
    storage.delete_folder(str(root), "link")
    assert not (root / "link").exists() and (tmp_path / "log/day=1/f").exists()
    storage.delete_folder(str(root), "a")
    assert not (root / "a").exists()


def test_the_root_may_be_a_link(tmp_path: Path) -> None:
    """Such as a table on a larger disk."""
    make_tree(tmp_path)
    (tmp_path / "table").symlink_to("log")
    storage.delete_folder(str(tmp_path / "table"), "a")
    assert tree(tmp_path / "log") == {"day=1", "day=1/f", "..f"}
    storage.empty_folder(str(tmp_path / "table"))
    assert tree(tmp_path / "log") == set() and (tmp_path / "table").is_symlink()


def test_a_checkpoint_that_is_a_link_is_not_deleted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """When old checkpoints are deleted, a checkpoint of another run that is linked here stays whole."""
    experiment = new_run(tmp_path, checkpoint={"every_steps": 4, "keep_last": 1}, training={"max_steps": 8})
    other = new_run(tmp_path / "other", checkpoint={"every_steps": 4}, training={"max_steps": 4})
    with one_worker() as worker:
        run_on(worker, other)
        linked = Path(other.checkpoint_folder) / "step-00000004"
        before = digests(linked)
        Path(experiment.checkpoint_folder).mkdir()
        (Path(experiment.checkpoint_folder) / "step-00000002").symlink_to(linked)
        run_on(worker, experiment, "auto")
    assert "step-00000002/complete.json is outside of" in caplog.text and digests(linked) == before


@pytest.mark.parametrize("part", ["x?endpoint_override=other", "x#y"])
def test_a_name_cannot_change_the_options_of_a_uri(part: str) -> None:
    with pytest.raises(UserError, match="begin the options of a URI. Rename it"):
        storage.join("s3://bucket/table?region=x", part)
    assert storage.join("/table", part) == f"/table/{part}"


DELETING = {
    "delete_dir",
    "delete_dir_contents",
    "delete_root_dir_contents",
    "delete_file",
    "rmtree",
    "unlink",
    "rmdir",
    "removedirs",
}
ELSEWHERE = {
    "cluster/install.py": "its own stamp",
    "cluster/local_head.py": "its own temporary folder and state",
    "cluster/ray_folder.py": "the temporary folder that it has made",
    "cluster/tokens.py": "an empty file of the token",
    "jobs/demo.py": "runs/demo",
    "pipeline/checkpoint/dcp_storage.py": "the file .metadata in the folder that torch is writing",
}


def test_everything_is_deleted_by_the_storage() -> None:
    """Whose two functions need the folder that the path belongs to. New code that deletes must use them."""
    root, found = Path(__file__).resolve().parents[1], set()
    for folder in ("pipeline", "jobs", "cluster", "models"):
        for file in (root / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                is_call = isinstance(node, ast.Attribute) and node.attr in DELETING
                if is_call and ast.unparse(node) != "storage.delete_file":
                    found.add(str(file.relative_to(root)))
    assert found == {"pipeline/storage.py", *ELSEWHERE}
