"""The reader: Arrow to Batch, padding, positions, workers."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.loading.batch import Batch
from pipeline.loading.batch_columns import BatchColumns
from pipeline.loading.lane import WindowRows
from pipeline.loading.position import Position
from pipeline.loading.reader import Reader
from pipeline.table.manifest import read_manifest
from tests import synthetic

COLUMNS = BatchColumns(
    ids=("user", "tags"),
    sequences=("item", "watched"),
    numerics=("age",),
    tasks=("click", "value"),
    scenarios=("tab",),
    keys=("row",),
)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    synthetic.write_table(folder)
    return folder


def make_reader(table: Path, rank: int = 0, workers: int = 1, batch: int = 32, seed: int | None = 3) -> Reader:
    return Reader(
        str(table),
        read_manifest(str(table)),
        "train",
        COLUMNS,
        global_batch_size=batch,
        rank=rank,
        workers=workers,
        seed=seed,
        shuffle_rows=128,
    )


def rows_of(batch: Batch) -> list[int]:
    """Row keys of the real rows of a batch."""
    assert batch.keys is not None
    return [row for row, weight in zip(batch.keys["row"].to_pylist(), batch.weights.tolist(), strict=True) if weight]


def global_batches(table: Path, workers: int, position: Position, batch: int = 32) -> list[set[int]]:
    readers = [list(make_reader(table, rank, workers, batch).epoch(position)) for rank in range(workers)]
    assert len({len(batches) for batches in readers}) == 1, "every worker makes the same number of steps"
    merged = []
    for parts in zip(*readers, strict=True):
        assert len({part.rows for part in parts}) == 1, "every worker has the same number of rows"
        rows = [row for part in parts for row in rows_of(part)]
        assert parts[0].weight_total.item() == len(rows) / workers
        assert len(rows) == len(set(rows))
        merged.append(set(rows))
    return merged


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(epoch=st.integers(0, 3), batch=st.sampled_from([4, 12, 32, 256, 1024]))
def test_every_row_once_per_epoch_in_batches_independent_of_workers(table: Path, epoch: int, batch: int) -> None:
    straight = global_batches(table, 1, Position(epoch), batch)
    assert sorted(row for rows in straight for row in rows) == list(range(203 + 151))
    assert global_batches(table, 2, Position(epoch), batch) == straight
    assert global_batches(table, 4, Position(epoch), batch) == straight


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), workers=st.sampled_from([1, 2, 4]))
def test_reading_from_a_position_yields_the_rest_of_the_epoch(table: Path, data: st.DataObject, workers: int) -> None:
    straight = global_batches(table, 1, Position(1))
    step = data.draw(st.integers(0, len(straight) - 1))
    assert global_batches(table, workers, Position(1, step)) == straight[step:]


def test_positions_count_batches_and_end_at_the_next_epoch(table: Path) -> None:
    batches = list(make_reader(table).epoch(Position(2)))
    assert [b.position for b in batches[:-1]] == [Position(2, s + 1) for s in range(len(batches) - 1)]
    assert batches[-1].position == Position(3, 0)


def test_epochs_differ_and_no_seed_keeps_the_order_of_the_table(table: Path) -> None:
    first = [rows_of(b) for b in make_reader(table).epoch(Position(0))]
    assert first != [rows_of(b) for b in make_reader(table).epoch(Position(1))]
    plain = make_reader(table, seed=None)
    unshuffled = [rows_of(b) for b in plain.epoch(Position(0))]
    assert unshuffled == [rows_of(b) for b in plain.epoch(Position(1))]
    lane = pq.read_table(next((table / "train/day=1/lane-000").glob("*.parquet")))["key:row"].to_pylist()
    assert unshuffled[0][:8] == lane[:8]


def test_a_batch_holds_the_values_of_the_files(table: Path) -> None:
    """Compares every value of every column with a plain reading of the same rows."""
    files = sorted((table / "train").rglob("*.parquet"))
    rows = {row["key:row"]: row for row in pa.concat_tables([pq.read_table(f) for f in files]).to_pylist()}
    for batch in make_reader(table, rank=1, workers=2).epoch(Position(0)):
        assert batch.keys is not None and batch.ids is not None and batch.sequences is not None
        jagged = {**batch.ids.to_dict(), **batch.sequences.to_dict()}
        lists = {name: jagged[name].to_dense() for name in ("user", "tags", "item", "watched")}
        for i, (key, weight) in enumerate(zip(batch.keys["row"].to_pylist(), batch.weights.tolist(), strict=True)):
            if weight == 0:
                assert key is None
                assert lists["tags"][i].tolist() == [] and lists["user"][i].tolist() == [0]
                continue
            row = rows[key]
            assert lists["user"][i].tolist() == [row["user"]] and lists["item"][i].tolist() == [row["item"]]
            assert lists["tags"][i].tolist() == row["tags"] and lists["watched"][i].tolist() == row["watched"]
            assert batch.numerics[i].tolist() == [np.float32(row["age"])]
            assert batch.labels[i].tolist() == [row["label:click"], np.float32(row["label:value"])]
            assert batch.scenarios[i].tolist() == [row["scenario:tab"]]


def test_columns_of_every_type_come_in_the_requested_order() -> None:
    columns = {
        "number": pa.array([5, 6, 7], pa.int16()),
        "missing": pa.array([1, None, 3]),
        "flag": pa.array([True, False, True]),
        "time": pa.array([1, 2, 3], pa.timestamp("us", "Europe/Paris")),
        "text": pa.array(["a", "b", "c"]),
        "lists": pa.array([[1], [], [2, 3]]),
    }
    two = pa.concat_tables([pa.table(columns).slice(0, 1), pa.table(columns).slice(1)])
    order = np.array([2, 0, 1])
    rows = WindowRows.of(two, order).part(1, 3)
    for name, column in columns.items():
        assert rows.column(name).equals(column.take(pa.array(order)).slice(1)), name
    assert rows.number("number").tolist() == [5, 6]


def test_workers_must_divide_lanes(table: Path) -> None:
    with pytest.raises(UserError, match="3 workers: the workers must divide the 4 lanes .* use one of 1, 2, 4"):
        make_reader(table, workers=3)
    with pytest.raises(UserError, match=r"30 is not a multiple of table\.lanes \(4\).* use 28"):
        make_reader(table, batch=30)


def test_unknown_split_is_reported(table: Path) -> None:
    with pytest.raises(UserError, match="no split 'tset'; it has: train, valid, test"):
        Reader(str(table), read_manifest(str(table)), "tset", COLUMNS, global_batch_size=4, rank=0, workers=1)


def test_damaged_file_is_reported(tmp_path: Path) -> None:
    synthetic.write_table(tmp_path)
    file = next((tmp_path / "train/day=2/lane-002").glob("*.parquet"))
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match="Cannot read train/day=2/lane-002"):
        list(make_reader(tmp_path).epoch(Position(0)))


def test_reading_does_not_touch_rows_before_the_position(tmp_path: Path) -> None:
    """Seeking is arithmetic, not replay: files of the windows before the position may even be missing."""
    synthetic.write_table(tmp_path)
    reader = make_reader(tmp_path, seed=None)
    late = Position(0, reader.steps_per_epoch - 2)
    expected = [rows_of(b) for b in reader.epoch(late)]
    for file in (tmp_path / "train/day=1").rglob("*.parquet"):
        file.unlink()
    assert [rows_of(b) for b in reader.epoch(late)] == expected
