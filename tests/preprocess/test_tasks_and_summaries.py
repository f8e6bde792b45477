"""Errors from Ray tasks, reading of units, and the summary of a finished table."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from pipeline.errors import UserError
from pipeline.preprocess.run_table import summary
from pipeline.preprocess.tasks import run_tasks, tasks_at_once
from pipeline.preprocess.units import Unit, Unreadable, read_unit
from pipeline.table.manifest import LaneFile, Manifest, Partition, TableColumn
from tests.preprocess.logs import experiment


def test_a_user_error_in_a_task_is_raised_unchanged(ray_is_up: None) -> None:
    def task(item: dict[str, Any], shared: int) -> dict[str, Any]:
        if item["number"] == shared:
            raise UserError("The number is 2; expected another.")
        if item["number"] == 1:
            raise Unreadable("torn")
        return {"double": 2 * item["number"]}

    items = [{"number": number} for number in range(2)]
    done = sorted(run_tasks(task, items, 2), key=lambda d: d.item["number"])
    assert [(d.result, d.unreadable) for d in done] == [({"double": 0}, None), ({}, "torn")]
    with pytest.raises(UserError, match=r"^The number is 2; expected another\.$"):
        list(run_tasks(task, [{"number": 2}], 2))
    assert list(run_tasks(task, [], 2)) == []


def test_tasks_reserve_memory(ray_is_up: None) -> None:
    def reserved(item: dict[str, Any], shared: None) -> dict[str, Any]:
        return dict(ray.get_runtime_context().get_assigned_resources())

    total = int(ray.cluster_resources()["memory"])
    for memory in (None, 10 * 2**20, total):
        done = list(run_tasks(reserved, [{"number": number} for number in range(4)], None, memory))
        assert [int(d.result.get("memory", 0)) for d in done] == [memory or 0] * 4
    assert [tasks_at_once(memory) for memory in (None, 10 * 2**20, total, total + 1)] == [2, 2, 1, 0]


def test_more_memory_than_any_machine_has_is_refused(ray_is_up: None) -> None:
    with pytest.raises(
        UserError, match=r"cluster.memory_per_task is 1024.0 TiB, and no machine .*: use a smaller value"
    ):
        list(run_tasks(lambda item, shared: {}, [{"number": 0}], None, 2**50))


def test_tasks_do_not_import_pytorch(tmp_path: Path) -> None:
    (tmp_path / "experiment").write_bytes(pickle.dumps(experiment(tmp_path).table_experiment))
    code = (
        "import pickle, sys, pipeline.preprocess.transform; "
        "read = pickle.load(open(sys.argv[1], 'rb')); "
        "print(read.features[0].name, {'torch', 'models.build'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "experiment")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "user set()\n"


def test_only_repetitive_texts_are_read_as_dictionaries(tmp_path: Path) -> None:
    rows = 200_000
    few = pa.array(["a text", "another"] * (rows // 2))
    many = pa.array([f"text number {n}" for n in range(rows)])
    texts = pa.table({"few": few, "bytes": few.cast(pa.binary()), "many": many})
    pq.write_table(texts, tmp_path / "file.parquet")
    unit = Unit("train", "1", 0, "file.parquet", [0], 0, rows)
    read = read_unit(str(tmp_path), unit, texts.column_names, {"few", "bytes", "many"})
    dictionaries = [pa.dictionary(pa.int32(), type_) for type_ in (pa.large_string(), pa.large_binary())]
    assert read.schema.types == [*dictionaries, pa.large_string()]
    assert read.to_pydict() == texts.to_pydict()


def test_the_summary_counts_rows() -> None:
    lanes = [[LaneFile("a", 600, 2048)], [LaneFile("b", 590, 2048)]]
    train = Partition("train", "1", 1203, 3, 10, lanes)
    manifest = Manifest("f" * 64, 2, 16, [TableColumn("user", "int32")], {"user": 12}, [train])
    assert "train: 1,190 rows in 1 partitions (1,203 read, 3 quarantined, 10 filtered out)" in summary(manifest, "t", 1)
