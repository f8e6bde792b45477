"""The columns of quarantine files: all are carried, in batches; one that cannot be read is left out and reported."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.features.arrow_types import normal
from pipeline.preprocess import units
from pipeline.preprocess.discover import read_files
from pipeline.preprocess.partitions import find_partitions
from pipeline.preprocess.preprocess_plan import make_preprocess_plan
from pipeline.preprocess.quarantine import write_quarantine
from pipeline.preprocess.units import cut_units, in_batches, read_unit
from tests.preprocess.logs import experiment
from tests.preprocess.test_bad_logs import first_day, folder, good, quarantined_rows, run, write
from tests.preprocess.test_column_types import CASES

__all__ = ["folder"]  # the fixture


def carry(folder: Path, table: pa.Table, rows: list[int], **options: Any) -> tuple[pa.Table, dict[str, str]]:
    """The quarantine file of some rows of a log file, and its lost columns."""
    count = len(table)
    extra = {"row": range(count), "tab": [0] * count, "click": [0] * count}
    for name, values in extra.items():
        table = table.append_column(name, pa.array(values))
    write(table, folder / "log/day=1/a.parquet", **options)
    return carry_file(folder, rows)


def carry_file(folder: Path, rows: list[int]) -> tuple[pa.Table, dict[str, str]]:
    sections = experiment(
        folder,
        logs={"joins": [], "splits": {"train": [1, 1]}},
        features=[{"name": "f", "column": "row", "kind": "categorical", "ids": {"hash": 3}, "dim": 2}],
        tasks=[{"name": "click", "column": "click", "kind": "binary"}],
    ).table_experiment
    (found,) = read_files(sections.logs, find_partitions(sections.logs).partitions)
    plan = make_preprocess_plan(sections, str(folder / "table"), found.files)
    (unit,) = cut_units(found)
    lost = write_quarantine(plan, unit, np.array(rows), pa.array(["why"] * len(rows)))
    return pq.read_table(folder / "table/quarantine/day=1/unit-00000.parquet", partitioning=None), lost


def test_columns_of_all_types_are_carried_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {name: case.values for name, case in CASES.items()}
    columns |= {"nothing": pa.nulls(3), "a.b": pa.array([1, 2, 3]), "a": pa.array([{"b": "x"}, None, {"b": None}])}
    wanted = pa.concat_tables([pa.table(columns)] * 3)
    rows = [0, 2, 4, 5, 8]
    monkeypatch.setattr(units, "BATCH_ROWS", (2, 1))
    bad, lost = carry(tmp_path, wanted, rows, row_group_size=3)  # a slice of views cannot be written
    assert lost == {}
    assert bad.column_names == [*columns, "row", "tab", "click", "file", "quarantine_row", "reason"]
    for name in columns:
        expected = normal(wanted[name]).take(pa.array(rows)).to_pylist()
        assert normal(bad[name]).to_pylist() == expected, name
    assert bad["quarantine_row"].to_pylist() == bad["row"].to_pylist() == rows


def damage(path: Path, name: str) -> None:
    """Overwrites the data of a column."""
    data, metadata = bytearray(path.read_bytes()), pq.read_metadata(path)
    for group in range(metadata.num_row_groups):
        for i in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(i)
            if chunk.path_in_schema.split(".")[0] == name:
                start = chunk.dictionary_page_offset or chunk.data_page_offset
                data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(data)


def test_a_column_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    table = pa.table({"a": ["x", "y", "z"], "b": [["x"], [], None], "c": [1, 2, 3]})
    carry(tmp_path, table, [1], use_dictionary=False)
    damage(tmp_path / "log/day=1/a.parquet", "b")
    bad, lost = carry_file(tmp_path, [1, 2])
    assert lost.keys() == {"b"} and "\n" not in lost["b"]
    assert bad.drop(["tab", "click", "file", "reason"]).to_pydict() == {
        "a": ["y", "z"],
        "c": [2, 3],
        "row": [1, 2],
        "quarantine_row": [1, 2],
    }


@pytest.mark.usefixtures("ray_is_up")
def test_a_lost_column_is_reported_once_and_the_run_goes_on(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for day in (1, 2):
        odd = good().append_column("note", pa.array(["n"] * 6)).append_column("other", pa.array(["o"] * 6))
        path = folder / f"log/day={day}/odd.parquet"
        write(odd.set_column(odd.column_names.index("click"), "click", pa.array([7, 0, 1, 0, 1, 0])), path)
        damage(path, "note")
    with caplog.at_level(logging.WARNING):
        manifest = run(folder)
    assert all(partition.quarantined == 1 for partition in manifest.partitions)
    assert quarantined_rows(folder / "table", first_day(manifest), "other") == ["o"]
    (warning,) = [record.getMessage() for record in caplog.records if "could not be carried" in record.getMessage()]
    assert warning.startswith("The column 'note' could not be carried into the quarantine files of 2 units (day=1/odd")


POOLS = []  # a pool must outlive the arrays that were allocated in it


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Measures the peak of what Arrow allocates meanwhile, in bytes."""
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    POOLS.append(pool)
    peak: list[int] = []
    pa.set_memory_pool(pool)
    try:
        yield peak
    finally:
        pa.set_memory_pool(before)
        peak.append(pool.max_memory())


def test_one_bad_row_does_not_read_the_unit_into_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = pa.array([rng.bytes(512) for _ in range(2**15)])
    table = pa.table({f"text{i}": texts for i in range(4)})
    options: dict[str, Any] = {"use_dictionary": False, "compression": "none"}
    carry(tmp_path, table, [5], **options)
    with peak_memory() as whole:
        pq.read_table(tmp_path / "log/day=1/a.parquet", partitioning=None)
    with peak_memory() as peak:
        bad, _ = carry_file(tmp_path, [2**15 - 1])
    assert bad["text3"].to_pylist() == [texts[-1].as_py()]
    assert peak[0] < whole[0] / 2


# More text in a list than one array can hold


def test_batches_become_smaller_until_they_can_be_read() -> None:
    tried = []

    def read(rows: int) -> int:
        tried.append(rows)
        if rows > 100:
            raise pa.ArrowNotImplementedError("Nested data conversions not implemented for chunked array outputs")
        return rows

    assert in_batches(read) == tried[-1] == 64
    assert tried == sorted(tried, reverse=True)


def test_a_column_that_cannot_be_read_at_once_is_read_in_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrow reads lists and structs of texts at once only up to 2 GiB."""
    lists = pa.array([["a"] * (n % 5) if n % 7 else None for n in range(300)])
    structs = pa.array([{"t": f"t{n}", "l": [f"l{n}"]} if n % 3 else None for n in range(300)])
    words = pa.array([f"w{n % 3}" for n in range(300)])
    write(pa.table({"lists": lists, "structs": structs, "words": words}), tmp_path / "a.parquet", row_group_size=70)
    unit = units.Unit("train", "1", 0, "a.parquet", [1, 2, 3], 70, 210)
    names = ["lists", "structs.t", "structs.l", "words"]
    whole = read_unit(str(tmp_path), unit, names, {"words"})

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise pa.ArrowNotImplementedError("Nested data conversions not implemented for chunked array outputs")

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", refuse)
    monkeypatch.setattr(units, "BATCH_ROWS", (64, 1))
    parts = read_unit(str(tmp_path), unit, names, {"words"})
    assert parts["lists"].num_chunks > 1
    assert parts.to_pydict() == whole.to_pydict()
    assert whole["lists"].to_pylist() == lists[70:280].to_pylist()
