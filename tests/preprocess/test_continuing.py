"""Killed jobs, growing tables and changed settings."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.preprocess.job import preprocess
from pipeline.table.manifest import Manifest, read_manifest
from pipeline.table.settings import check_table_is_of
from tests.preprocess.logs import digests, experiment, log_rows, write_file, write_log, write_side

pytestmark = pytest.mark.usefixtures("ray_is_up")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, ray_is_up: None) -> Path:
    """A folder with a log and its finished table, which tests copy."""
    folder = tmp_path_factory.mktemp("whole")
    write_log(folder / "log", rows=60)
    write_side(folder / "side.parquet")
    run(folder)
    return folder


@pytest.fixture
def table(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole / "table", tmp_path / "table")


def run(folder: Path, table: Path | None = None, overwrite: bool = False) -> Manifest:
    return preprocess(experiment(folder), str(table or folder / "table"), overwrite)


def test_a_missing_partition_is_made_and_complete_partitions_are_kept(whole: Path, table: Path) -> None:
    (table / "manifest.json").unlink()
    record = table / "partitions/train-20240102.json"
    record.write_text(record.read_text()[:100])  # incomplete
    untouched = next(table.glob("valid/day=*/lane-000/*.parquet")).stat().st_mtime_ns
    (table / "train/day=20240102/lane-000/unit-00099.parquet").write_text("left by a killed job")
    run(whole, table)
    assert digests(table) == digests(whole / "table")
    assert next(table.glob("valid/day=*/lane-000/*.parquet")).stat().st_mtime_ns == untouched


@pytest.mark.parametrize("left", ["settings.json", "columns.parquet"])
def test_a_job_killed_before_the_encoders_are_complete_starts_over(whole: Path, table: Path, left: str) -> None:
    for path in table.iterdir():
        if path.name not in {left, "columns.parquet"}:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if left == "settings.json":
        (table / "work").mkdir()
        (table / "work/half").write_text("half")
        (table / "encoders").mkdir()
        (table / "encoders/user.parquet").write_text("half")
    run(whole, table)
    assert digests(table) == digests(whole / "table")


KILLED = """
import os, signal, sys
from pathlib import Path
import ray
from pipeline.preprocess import commit
from tests.preprocess.test_continuing import run

ray.init(address=sys.argv[3], log_to_driver=False)
write_json, written = commit.storage.write_json, []

def killed_at_the_second_partition(path, value):
    if "/partitions/" in path:
        written.append(path)
        if len(written) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
    write_json(path, value)

commit.storage.write_json = killed_at_the_second_partition
run(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_killed_job_continues_to_the_same_table(whole: Path, tmp_path: Path) -> None:
    import ray

    table = tmp_path / "table"
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-c", KILLED, str(whole), str(table), address]
    killed = subprocess.run(command, capture_output=True, text=True, cwd=Path.cwd(), timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(list((table / "partitions").iterdir())) == 1 and not (table / "manifest.json").exists()
    run(whole, table)
    assert digests(table) == digests(whole / "table")


def test_a_new_day_is_appended_with_the_existing_encoders(whole: Path, tmp_path: Path) -> None:
    for name in ("log", "table"):
        shutil.copytree(whole / name, tmp_path / name)
    write_side(tmp_path / "side.parquet")
    settings = json.loads((whole / "table/settings.json").read_text())
    new = experiment(tmp_path)
    # The same settings for the copied folder, because paths are part of the settings.
    (tmp_path / "table/settings.json").write_text(json.dumps(settings).replace(str(whole), str(tmp_path)))
    before = digests(tmp_path / "table")
    write_file(tmp_path / "log/day=20240105/part.parquet", log_rows(30, seed=77))
    write_file(tmp_path / "log/day=20231231/part.parquet", log_rows(30, seed=78))
    manifest = preprocess(new, str(tmp_path / "table"))
    assert [p.value for p in manifest.split("test")] == ["20240104", "20240105"]
    assert manifest.rows("test") == 150 and manifest.ignored_partitions == ["20231231"]
    assert manifest == read_manifest(str(tmp_path / "table"))
    after = digests(tmp_path / "table")
    assert {path for path in before if after[path] != before[path]} == {"manifest.json"}
    shutil.rmtree(tmp_path / "log/day=20240101")  # old days may leave the log
    assert preprocess(new, str(tmp_path / "table")) == manifest


def test_a_table_is_not_read_with_other_splits(whole: Path, table: Path) -> None:
    """A wider range includes new days when they arrive; one that moves a partition first needs `preprocess`."""
    splits = experiment(whole).model_dump(mode="json")["logs"]["splits"]
    splits["test"][1] += 100
    wider = experiment(whole, logs={"splits": splits})
    assert preprocess(wider, str(table)) == read_manifest(str(table))
    check_table_is_of(wider, str(table), read_manifest(str(table)))
    taken = {"train": splits["train"][:1] + [splits["valid"][1]], "test": splits["test"]}
    left_out = {**splits, "train": [20240102, 20240102]}
    for changed, message in (
        (taken, "puts day=20240103 into `train`, but the feature table in .* has it in `valid`"),
        (left_out, "puts day=20240101 into no split, but the feature table in .* has it in `train`"),
    ):
        moved = experiment(whole, logs={"splits": changed})
        with pytest.raises(UserError, match=message + r".*\. Run `manygate preprocess` again, or change the range"):
            check_table_is_of(moved, str(table), read_manifest(str(table)))


def test_a_split_without_remaining_rows_is_refused(whole: Path, tmp_path: Path) -> None:
    for name in ("log", "side.parquet"):
        source = whole / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    day = tmp_path / "log/day=20240104"
    shutil.rmtree(day)
    write_file(day / "part.parquet", log_rows(0, seed=1))
    with pytest.raises(UserError, match="logs.splits.test: no row is left of its 0 rows in 1 partitions"):
        run(tmp_path)
    assert not (tmp_path / "table/manifest.json").exists()


def test_a_finished_table_is_not_changed(whole: Path, caplog: pytest.LogCaptureFixture) -> None:
    times = {path: path.stat().st_mtime_ns for path in (whole / "table").rglob("*")}
    with caplog.at_level("INFO"):
        run(whole)
    assert "nothing to do" in caplog.text
    assert times == {path: path.stat().st_mtime_ns for path in (whole / "table").rglob("*")}


def test_other_settings_are_refused_until_overwritten(whole: Path, table: Path) -> None:
    changed = experiment(whole, table={"lanes": 8})
    before = digests(table)
    with pytest.raises(UserError, match=r"table.lanes: 4 -> 8\. To continue, rebuild the table with .*--overwrite"):
        preprocess(changed, str(table))
    assert digests(table) == before
    assert preprocess(changed, str(table), overwrite=True).lanes == 8
    assert len(list((table / "train/day=20240101").iterdir())) == 8


def test_settings_of_the_model_do_not_affect_the_table(whole: Path, table: Path) -> None:
    features = experiment(whole).model_dump(mode="json")["features"]
    features[0] |= {"dim": 32, "sharding": "row_wise"}
    assert preprocess(experiment(whole, features=features), str(table)) == read_manifest(str(table))
    features[1]["name"], features[0]["ids"]["vocabulary"]["min_count"] = "thing", 1
    features = [f for f in features if f.get("shares") is None]
    message = r"features.user.ids.vocabulary.min_count: 3 -> 1; features.item: removed; .*features.thing: added"
    with pytest.raises(UserError, match=message):
        preprocess(experiment(whole, features=features), str(table))


def test_a_folder_with_other_content_is_refused(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match="'photos'"):
        run(whole, tmp_path)
