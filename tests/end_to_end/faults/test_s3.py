"""Logs, feature table, checkpoints and metrics in an S3 store with slow, wrong or missing answers."""

import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from jobs import train
from pipeline import storage
from pipeline.checkpoint.choice import LATEST
from pipeline.checkpoint.format import complete_checkpoints
from pipeline.config.experiment import Experiment
from pipeline.config.load import dump_experiment
from pipeline.errors import UserError
from pipeline.loading.lane import LaneStream
from pipeline.loading.order import RowGroup
from pipeline.scoring.checkpoint_evaluation import evaluate_on_worker
from pipeline.table.manifest import read_manifest
from pipeline.training.metrics_log import RunLog
from pipeline.workers.worker import Worker
from tests.commands import manygate
from tests.end_to_end.conftest import ROOT
from tests.object_store import BUCKET, Faults, ObjectStore, object_store
from tests.preprocess import logs
from tests.training.runs import assert_identical, metrics, new_run, run_on, tensors
from tests.workers import WorkerPool, fork, one_worker

GUARD_S = 200  # for a process that hangs
ROUGH = {"slow_down": 0.02, "delay": 0.02, "cut_upload": 0.02, "cut_download": 0.02}
SECTIONS: dict[str, Any] = {"checkpoint": {"every_steps": 5, "keep_last": 100}, "training": {"max_steps": 16}}


@pytest.fixture(scope="module")
def running() -> Iterator[ObjectStore]:
    """A store that this process and its child processes find through environment variables."""
    with object_store() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        yield store


@pytest.fixture
def store(running: ObjectStore) -> Iterator[ObjectStore]:
    yield running
    running.faults = Faults()


def upload(store: ObjectStore, folder: Path, prefix: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            store.put(f"{prefix}/{path.relative_to(folder)}", path.read_bytes())


def download(store: ObjectStore, prefix: str, folder: Path) -> None:
    """Downloads the objects below a prefix, without the proxy."""
    for key in store.all_keys():
        if key.startswith(f"{prefix}/") and not key.endswith("/"):
            path = folder / key.removeprefix(f"{prefix}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(store.content(key))


def with_output(experiment: Experiment, output: str) -> Experiment:
    return experiment.model_copy(update={"output": output})


def on_s3(experiment: Experiment, store: ObjectStore, name: str) -> Experiment:
    """The experiment with its output in the store, where its existing files are copied."""
    upload(store, Path(experiment.output), name)
    return with_output(experiment, store.uri(name))


def downloaded(experiment: Experiment, store: ObjectStore, folder: Path) -> Experiment:
    """A copy of a run in the store, on the local disk."""
    download(store, experiment.output.removeprefix(f"s3://{BUCKET}/"), folder)
    return with_output(experiment, str(folder))


def assert_same_run(one: Experiment, two: Experiment, step: int, scratch: Path) -> None:
    for folder in ("one", "two"):
        (scratch / folder).mkdir()
    assert_identical(tensors(one, step, scratch / "one"), tensors(two, step, scratch / "two"))
    assert metrics(one) == metrics(two)


def steps(experiment: Experiment) -> list[int]:
    return [saved.step for saved in complete_checkpoints(experiment.checkpoint_folder)]


@pytest.fixture(scope="module")
def driver(running: ObjectStore) -> Iterator[WorkerPool]:
    """A process for preprocessing, whose Ray workers find the store too."""
    pool = WorkerPool(1)
    yield pool
    pool.run(stop_ray)
    pool.close()


def preprocess_on(worker: Worker, file: str) -> None:
    manygate("preprocess", file, check=0)


def stop_ray(worker: Worker) -> None:
    ray.shutdown()


def preprocess_here(file: str) -> None:
    manygate("preprocess", file, check=0)


def whole_path(experiment: Experiment, scratch: Path, preprocess: Callable[[str], Any]) -> dict[str, Any]:
    """Preprocesses, trains, resumes and evaluates; returns the evaluation."""
    file = scratch / "experiment.yaml"
    file.write_text(dump_experiment(experiment))
    preprocess(str(file))
    first = experiment.model_copy(update={"training": experiment.training.model_copy(update={"max_steps": 7})})
    with one_worker() as worker:
        assert run_on(worker, first) == "finished"
        assert run_on(worker, experiment) == "finished"
        evaluation = evaluate_on_worker(worker, experiment, LATEST, "test")
    assert evaluation is not None
    for key in ("checkpoint", "inputs"):  # a path, which differs, and a hash of files that contain it
        evaluation.pop(key)
    return evaluation


def log_experiment(folder: Path, output: str, log: str) -> Experiment:
    # The widths of sequences must be equal, and multiples of 4.
    features = [feature for feature in logs.FEATURES if feature["name"] not in ("years", "flag")]
    training = {"epochs": 2, "max_steps": 12, "log_every_steps": 4}
    experiment = logs.experiment(folder, output=output, features=features, training=training)
    joins = [join.model_copy(update={"path": f"{log}/side.parquet"}) for join in experiment.logs.joins]
    return experiment.model_copy(
        update={
            "logs": experiment.logs.model_copy(update={"path": f"{log}/log", "joins": joins}),
            "checkpoint": experiment.checkpoint.model_copy(update={"every_steps": 5, "keep_last": 100}),
        }
    )


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, ray_is_up: None) -> tuple[Path, Experiment, dict[str, Any]]:
    """Logs, and a whole run from them on the local disk."""
    folder = tmp_path_factory.mktemp("local")
    logs.write_log(folder / "data/log", rows=60)
    logs.write_side(folder / "data/side.parquet")
    experiment = log_experiment(folder, str(folder / "runs"), str(folder / "data"))
    return folder, experiment, whole_path(experiment, folder, preprocess_here)


@pytest.mark.parametrize("weather", ["calm", "rough"])
def test_a_whole_run_equals_the_run_on_a_local_disk(
    store: ObjectStore, driver: WorkerPool, local: tuple[Path, Experiment, dict[str, Any]], tmp_path: Path, weather: str
) -> None:
    folder, expected, evaluation = local
    upload(store, folder / "data", f"{weather}-data")
    remote = log_experiment(folder, store.uri(f"{weather}-runs"), store.uri(f"{weather}-data"))
    before = store.done.total()
    if weather == "rough":
        store.faults = Faults(seed=1, **ROUGH)
    assert whole_path(remote, tmp_path, lambda file: driver.run(preprocess_on, file)) == evaluation
    store.faults = Faults()
    assert (store.done.total() > before) == (weather == "rough")
    found = downloaded(remote, store, tmp_path / "back")
    assert_same_table(Path(expected.table_folder), Path(found.table_folder))
    assert_same_run(expected, found, 12, tmp_path)


def assert_same_table(one: Path, two: Path) -> None:
    """All files are the same, except for the path of the side table in the settings, and their fingerprint."""
    expected, found = logs.digests(one), logs.digests(two)
    assert expected.keys() == found.keys()
    assert {name for name, digest in expected.items() if digest != found[name]} == {"settings.json", "manifest.json"}
    assert replace(read_manifest(str(one)), fingerprint="") == replace(read_manifest(str(two)), fingerprint="")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """An undisturbed run."""
    experiment = new_run(tmp_path_factory.mktemp("straight"), **SECTIONS)
    with one_worker() as worker:
        run_on(worker, experiment)
    return experiment


@pytest.fixture
def table(tmp_path: Path) -> Experiment:
    """An experiment with a table and without a run."""
    return new_run(tmp_path / "table", **SECTIONS)


def test_a_checkpoint_that_cannot_be_written_is_all_that_is_lost(
    store: ObjectStore, straight: Experiment, table: Experiment, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    remote = on_s3(table, store, "refused")
    store.faults = Faults(refuse_writes="step-00000010/")
    with one_worker() as worker:
        assert run_on(worker, remote) == "finished"
        assert "The checkpoint of step 10 could not be saved" in caplog.text
        assert "ACCESS_DENIED" in caplog.text
        kept = [step for step in steps(straight) if step != 10]
        assert steps(remote) == kept
        assert_same_run(straight, downloaded(remote, store, tmp_path / "back"), 16, tmp_path)
        store.faults = Faults()
        run_on(worker, remote, storage.join(remote.checkpoint_folder, "step-00000005"))
    assert steps(remote) == steps(straight)
    for folder in ("one", "two"):
        (tmp_path / folder).rename(tmp_path / f"{folder}-before")
    assert_same_run(straight, downloaded(remote, store, tmp_path / "again"), 16, tmp_path)


def test_a_process_killed_in_the_middle_of_an_upload_leaves_no_partial_checkpoint(
    store: ObjectStore, straight: Experiment, table: Experiment, tmp_path: Path
) -> None:
    remote = on_s3(table, store, "killed")
    store.faults = Faults(hold_writes="step-00000010/data/.*distcp")
    process = fork(train_alone, remote, output=tmp_path / "printed.txt")
    try:
        assert store.is_holding.wait(GUARD_S)
    finally:
        process.kill()
        process.join()
    assert not [key for key in store.all_keys() if re.fullmatch("killed/.*step-00000010.*distcp", key)]
    assert steps(remote) == [5]
    store.faults = Faults()
    with one_worker() as worker:
        assert run_on(worker, remote) == "finished"
    assert steps(remote) == steps(straight)
    assert_same_run(straight, downloaded(remote, store, tmp_path / "back"), 16, tmp_path)


def train_alone(experiment: Experiment) -> None:
    with one_worker() as worker:
        run_on(worker, experiment)


def test_a_store_that_is_down_is_an_error(
    table: Experiment, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        monkeypatch.setattr(storage, "_S3_ATTEMPTS", 2)  # each attempt waits longer than the previous one
        with pytest.raises(UserError, match="did not serve s3://bucket/down/.*Could not connect.*Check its address"):
            train.run(with_output(table, store.uri("down")), "local", 1, "auto")


def test_a_table_is_not_reported_as_damaged_if_its_store_refuses_a_read(store: ObjectStore, table: Experiment) -> None:
    remote = on_s3(table, store, "closed")
    file = "train/day=1/lane-000/unit-00000.parquet"
    store.faults = Faults(refuse_reads="lane-")
    with ThreadPoolExecutor() as threads, pytest.raises(UserError) as caught:
        LaneStream(remote.table_folder, [RowGroup(file, 0, 16)], ["user"], 0, None, 0, 0, threads).take(1)
    assert f"did not serve {remote.table_folder}/{file}" in str(caught.value)
    assert "--overwrite" not in str(caught.value)


def test_a_request_without_an_answer_is_repeated(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_S3_SILENCE_S", 1.0)
    monkeypatch.setattr(storage, "_s3", {})  # no connection with the previous time limit
    store.put("quiet/file.json", b"[1]")
    store.faults = Faults(silent_first="quiet/")
    assert storage.exists(store.uri("quiet/file.json"))
    assert store.done["silent"] == 1


def test_metrics_that_cannot_be_written_are_kept(
    store: ObjectStore, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """One warning, no error, and no line lost; a resume keeps the lines up to its step."""
    folder = store.uri("metrics")
    run_log = RunLog(folder, 0)
    run_log.record("train", 1, {"x": 1})
    run_log.flush()
    store.faults = Faults(refuse_writes="metrics.jsonl")
    for step in (2, 3):
        run_log.record("train", step, {"x": step})
        run_log.flush()
    assert len(re.findall("metrics.jsonl cannot be written", caplog.text)) == 1
    assert logged_steps(store) == [1]
    store.faults = Faults()
    run_log.flush()
    assert logged_steps(store) == [1, 2, 3]
    run_log.record("train", 4, {"x": 4})
    run_log.close()
    assert logged_steps(store) == [1, 2, 3, 4]
    RunLog(folder, 2).close()
    assert logged_steps(store) == [1, 2]


def logged_steps(store: ObjectStore) -> list[int]:
    return [int(step) for step in re.findall(rb'"step": ([0-9]+)', store.content("metrics/metrics.jsonl"))]


def test_metrics_are_not_written_to_an_object_store_at_every_line(store: ObjectStore) -> None:
    run_log = RunLog(store.uri("often"), 0)
    before = store.count_requests("PUT", "often/metrics.jsonl")
    for step in range(100):
        run_log.record("train", step, {"x": step})
    run_log.close()
    assert 1 <= store.count_requests("PUT", "often/metrics.jsonl") - before < 10


def test_a_store_without_folders_behaves_as_if_it_had_them(store: ObjectStore) -> None:
    folder = store.uri("folders/a")
    assert not storage.exists(folder) and not storage.is_folder(folder) and storage.list_folder(folder) == []
    assert storage.read_json(storage.join(folder, "x.json")) is None
    storage.create_folder(folder)
    storage.delete_folder(store.uri("folders"), "a")
    storage.delete_file(folder, "x.json")
    storage.write_json(storage.join(folder, "b", "x.json"), {"x": 1})
    storage.write_json(storage.join(folder, "y.json"), 2)
    assert storage.is_folder(folder) and not storage.is_folder(storage.join(folder, "y.json"))
    assert storage.list_folder(folder) == ["b", "y.json"]
    storage.delete_file(folder, "y.json")
    assert storage.list_folder(folder) == ["b"]
    storage.delete_folder(store.uri("folders"), "a")
    assert not storage.exists(folder)


def test_a_bucket_is_neither_made_nor_deleted(store: ObjectStore) -> None:
    with pytest.raises(UserError, match="did not serve s3://none/x.json.*bucket does not exist"):
        storage.write_json("s3://none/x.json", 1)
    store.request("PUT", "/other")
    storage.create_folder("s3://other")
    storage.write_json("s3://other/x/y.json", 1)
    storage.empty_folder("s3://other")
    assert storage.is_folder("s3://other") and storage.list_folder("s3://other") == []


def test_the_uri_may_name_the_store_itself(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    root = f"s3://{BUCKET}/named?endpoint_override={store.endpoint.removeprefix('http://')}&scheme=http"
    storage.write_json(storage.join(root, "a", "b.json"), {"x": 1})
    assert store.content("named/a/b.json") == b'{\n "x": 1\n}'
    assert storage.list_folder(root) == ["a"]


def test_a_local_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    """A reader that has opened the old file continues to read it; a write that fails leaves only the old file."""
    file = tmp_path / "a.json"
    storage.write_text(str(file), "old")
    with file.open() as reader:
        storage.write_text(str(file), "new")
        assert reader.read() == "old"
    with pytest.raises(UnicodeEncodeError):
        storage.write_text(str(file), "half \ud800")
    assert file.read_text() == "new" and list(tmp_path.iterdir()) == [file]


def test_a_local_write_that_was_killed_leaves_the_old_file(tmp_path: Path) -> None:
    script = (
        "import os, signal; from pathlib import Path; from pipeline import storage\n"
        "os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"storage.write_text({str(tmp_path / 'a.json')!r}, 'new')"
    )
    (tmp_path / "a.json").write_text("old")
    killed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=GUARD_S)
    assert killed.returncode == -9
    assert (tmp_path / "a.json").read_text() == "old"
    assert storage.list_folder(str(tmp_path)) == ["a.json"]
