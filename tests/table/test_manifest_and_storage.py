"""Writing and reading the manifest, and files on several kinds of filesystems."""

import ast
import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.errors import UserError
from pipeline.table.manifest import read_manifest, write_manifest
from tests import synthetic


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    manifest = synthetic.write_table(tmp_path)
    assert read_manifest(str(tmp_path)) == manifest
    assert manifest.rows("train") == 203 + 151
    write_manifest(str(tmp_path), manifest)
    assert read_manifest(str(tmp_path)) == manifest


def test_a_missing_or_incomplete_manifest_and_a_newer_version_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished feature table .* run `manygate preprocess"):
        read_manifest(str(tmp_path / "nothing"))
    synthetic.write_table(tmp_path)
    file = tmp_path / "manifest.json"
    text = file.read_text()
    file.write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match="no finished feature table"):
        read_manifest(str(tmp_path))
    file.write_text(json.dumps({**json.loads(text), "version": 99}))
    with pytest.raises(UserError, match="manifest.json has version 99, .* up to 1: .* by a newer .*rebuild the table"):
        read_manifest(str(tmp_path))


@pytest.mark.parametrize("root", ["local", "memory://manygate-test"])
def test_files_on_a_local_disk_and_on_an_fsspec_filesystem(tmp_path: Path, root: str) -> None:
    folder = str(tmp_path) if root == "local" else f"{root}/{tmp_path.name}"
    file = storage.join(folder, "a", "b.json")
    assert storage.read_json(file) is None and not storage.exists(file)
    storage.write_json(file, {"x": [1, 2]})
    assert storage.read_json(file) == {"x": [1, 2]}
    assert storage.list_folder(storage.join(folder, "a")) == ["b.json"]
    assert storage.list_folder(storage.join(folder, "none")) == []
    storage.delete_file(folder, "a/b.json")
    storage.delete_file(folder, "a/b.json")
    assert not storage.exists(file)
    storage.write_json(file, 1)
    storage.delete_folder(folder, "a")
    storage.delete_folder(folder, "a")
    assert not storage.exists(file)
    storage.write_json(file, 1)
    storage.empty_folder(folder)
    storage.empty_folder(folder)
    assert storage.is_folder(folder) and storage.list_folder(folder) == []


def test_an_unknown_kind_of_storage_is_refused() -> None:
    with pytest.raises(UserError, match="Cannot open nosuch://"):
        storage.resolve("nosuch://bucket/key")


@pytest.mark.parametrize("uri", ["/data/runs", "runs", "s3://bucket/runs", "s3://bucket/runs?region=x&scheme=http"])
def test_options_stay_at_the_end_of_a_uri(uri: str) -> None:
    """Joined to and taken apart again; a slash at the end makes no difference."""
    path, mark, options = uri.partition("?")
    joined = storage.join(uri, "a", "b.json")
    assert joined == f"{path}/a/b.json{mark}{options}" == storage.join(f"{path}/{mark}{options}", "a/b.json")
    assert (storage.parent(joined), storage.name(joined)) == (storage.join(uri, "a"), "b.json")
    assert storage.join(f"{path}/{mark}{options}") == uri and storage.has_options(uri) == ("?" in uri)


# Paths that are relative or that `storage.resolve` returned: they have no options.
PATHS = {
    ("pipeline/checkpoint/dcp_storage.py", "path"),
    ("pipeline/machine.py", "path"),
    ("pipeline/preprocess/commit.py", "folder"),
    ("pipeline/preprocess/discover.py", "folder"),
    ("pipeline/preprocess/discover.py", "root"),
    ("pipeline/preprocess/listing.py", "folder"),
    ("pipeline/preprocess/listing.py", "path"),
    ("pipeline/preprocess/units.py", "root"),
    ("pipeline/preprocess/write.py", "folder"),
}


def test_uris_are_joined_by_the_storage() -> None:
    """An f-string would put the rest of the path behind the options of a URI."""
    root, found = Path(__file__).resolve().parents[2], set()
    for file in [*(root / "pipeline").rglob("*.py"), *(root / "jobs").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else []
            for value, text in zip(parts, parts[1:], strict=False):
                if isinstance(value, ast.FormattedValue) and isinstance(text, ast.Constant):
                    name = ast.unparse(value.value)
                    if re.search(r"(folder|uri|output|table|root|path)$", name) and str(text.value).startswith("/"):
                        found.add((str(file.relative_to(root)), name))
    assert found == PATHS


@given(st.text("aé %3A:=+&<>[]{}^`'\"|\\;,~", min_size=1, max_size=12).filter(lambda name: name.strip(".") == name))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_names_below_a_uri_are_names_on_the_disk(tmp_path: Path, name: str) -> None:
    for root in (f"file://{tmp_path}", f"local://{tmp_path}", str(tmp_path)):  # pyarrow, fsspec, a path
        file = storage.join(root, name, "x.json")
        assert storage.resolve(file)[1] == f"{tmp_path}/{name}/x.json"
        assert storage.name(storage.parent(file)) == name
    storage.write_json(storage.join(f"file://{tmp_path}", name, "x.json"), {})
    assert (tmp_path / name / "x.json").is_file()
    storage.delete_folder(f"file://{tmp_path}", name)
    assert not (tmp_path / name).exists()
