"""Writing and reading the manifest, and files on several kinds of filesystems."""

import json
from pathlib import Path

import pytest

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
    storage.delete_file(file)
    storage.delete_file(file)
    assert not storage.exists(file)
    storage.write_json(file, 1)
    storage.delete_folder(storage.join(folder, "a"))
    storage.delete_folder(storage.join(folder, "a"))
    assert not storage.exists(file)


def test_an_unknown_kind_of_storage_is_refused() -> None:
    with pytest.raises(UserError, match="Cannot open nosuch://"):
        storage.resolve("nosuch://bucket/key")
