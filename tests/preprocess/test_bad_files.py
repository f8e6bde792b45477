"""Broken files and folders: read, ignored, skipped and listed, or refused with one clear UserError."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.preprocess.test_bad_logs import (
    BRAND,
    BROKEN_TEXT,
    FEATURES,
    IDS,
    MOMENT,
    ROWS,
    STRUCT,
    TABLES,
    check_nothing_is_lost,
    first_day,
    folder,
    good,
    quarantined_rows,
    read_lanes,
    refused,
    run,
    texts,
    twice,
    with_column,
    write,
)

__all__ = ["folder"]  # the fixture

Break = Callable[[Path], Any]


def cut(path: Path) -> None:
    """Keeps only the first half."""
    write(good(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_magic(path: Path) -> None:
    write(good(), path)
    path.write_bytes(b"PAR2" + path.read_bytes()[4:-4] + b"PAR2")


def flipped_bit(path: Path) -> None:
    """Damages a value in a page that has a checksum; every page can be decoded."""
    write(good(), path, write_page_checksum=True, write_statistics=False, use_dictionary=False, compression="none")
    data = bytearray(path.read_bytes())
    data[data.index((100).to_bytes(8, "little"))] ^= 1
    path.write_bytes(bytes(data))


def odd_column_name(path: Path) -> None:
    """A column whose name is not UTF-8."""
    write(good().append_column("unusual", pa.array(range(ROWS))), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"unusual", b"unusu\xff\xfe"))


# (description, how the file is made, part of the error message, its day: only day 1 is read by both passes)
UNREADABLE: list[tuple[str, Break, str, int]] = [
    ("cut off", cut, "Parquet magic bytes not found", 1),
    ("wrong magic bytes", other_magic, "Parquet magic bytes not found", 2),
    ("only magic bytes", lambda path: path.write_bytes(b"PAR1PAR1"), "smaller than the size", 1),
    ("a footer longer than the file", lambda path: path.write_bytes(b"PAR1__\xff\xff\xff\x7fPAR1"), "size reported", 2),
    ("zero bytes", lambda path: path.write_bytes(b""), "size is 0 bytes", 1),
    ("text", lambda path: path.write_text("row,user\n1,2\n"), "Parquet magic bytes not found", 2),
    ("encrypted", lambda path: path.write_bytes(b"PARE" + bytes(99) + b"\4\0\0\0PARE"), "encrypted", 1),
    ("a flipped bit in a train day", flipped_bit, "CRC checksum", 1),
    ("a flipped bit", flipped_bit, "CRC checksum", 2),
    ("a column name that is not UTF-8", odd_column_name, "utf-8", 1),
]  # fmt: skip


@pytest.mark.usefixtures("ray_is_up")
@pytest.mark.parametrize(("damage", "message", "day"), [c[1:] for c in UNREADABLE], ids=[c[0] for c in UNREADABLE])
def test_unreadable_files_are_refused_or_skipped(folder: Path, damage: Break, message: str, day: int) -> None:
    damage(folder / f"log/day={day}/odd.parquet")
    refused(folder, [rf"The log file .*day={day}/odd.parquet cannot be read: .*{message}", "unreadable_files=skip"])
    manifest = run(folder, "skipping", logs={"unreadable_files": "skip"})
    assert {p.value: p.skipped_files for p in manifest.partitions if p.skipped_files} == {
        str(day): [f"day={day}/odd.parquet"]
    }
    assert [p.rows_read for p in manifest.partitions] == [p.kept for p in manifest.partitions] == [ROWS, ROWS]


def no_data(name: str) -> Break:
    return lambda day: (day / name).write_text("no data")


def more_rows(path: str) -> Break:
    return lambda day: write(good(), day / path)


UNTYPED = pa.table({name: pa.nulls(0) for name in good().column_names})  # as pandas writes a frame without rows

# (what is in the first day beside its good file, how it is made, number of rows that it adds)
BESIDE: list[tuple[str, Break, int]] = [
    ("_SUCCESS", no_data("_SUCCESS"), 0),
    ("checksums", no_data(".good.parquet.crc"), 0),
    ("hidden files", no_data("_metadata.parquet"), 0),
    ("hidden Parquet files", more_rows(".odd.parquet"), 0),
    ("a job that is writing", more_rows("_temporary/0/task_1/odd.parquet"), 0),
    ("a hidden folder", more_rows("deep/.staging/odd.parquet"), 0),
    ("files of another kind", no_data("good.csv"), 0),
    ("folders in the folder", more_rows("hour=3/minute=5/odd.parquet"), ROWS),
    ("a folder named like a file", more_rows("odd.parquet/part-0.parquet"), ROWS),
    ("an empty folder named like a file", lambda day: (day / "odd.parquet").mkdir(), 0),
    ("a name with blanks and signs", more_rows("a b#c%20d?é.parquet"), ROWS),
    ("a file without rows", lambda day: write(good(0), day / "odd.parquet"), 0),
    ("a file without rows or types", lambda day: write(UNTYPED, day / "odd.parquet"), 0),
    ("row groups without rows", lambda day: empty_groups(day / "odd.parquet"), ROWS),
]


def empty_groups(path: Path) -> None:
    with pq.ParquetWriter(path, good().schema) as writer:
        for table in (good(0), good(), good(0)):
            writer.write_table(table)


@pytest.mark.usefixtures("ray_is_up")
@pytest.mark.parametrize(("put", "rows"), [c[1:] for c in BESIDE], ids=[c[0] for c in BESIDE])
def test_only_visible_parquet_files_are_read(folder: Path, put: Break, rows: int) -> None:
    put(folder / "log/day=1")
    manifest = run(folder)
    keys = {"1": [*range(ROWS), *range(100, 100 + rows)], "2": list(range(50, 50 + ROWS))}
    check_nothing_is_lost(folder, manifest, TABLES, keys)
    assert first_day(manifest).kept == ROWS + rows


@pytest.mark.usefixtures("ray_is_up")
def test_days_without_rows_or_files_are_accepted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(good(0), folder / "log/day=3/empty.parquet")
    (folder / "log/day=4").mkdir()
    (folder / "log/day=5").write_text("a file named like a partition")
    (folder / "log/day=6_$folder$").write_text("")
    manifest = run(folder)
    assert {p.value: p.rows_read for p in manifest.partitions} == {"1": ROWS, "2": ROWS, "3": 0}
    assert "day=4 has no Parquet files yet" in caplog.text


@pytest.mark.parametrize("value", ["1%20", "one", "1.0"])
def test_partitions_that_are_not_numbers_are_refused(folder: Path, value: str) -> None:
    (folder / f"log/day={value}").mkdir()
    refused(
        folder, [f"numbers .such as .*1.* and texts .such as day={value}. cannot be ordered", "bounds .* in quotes"]
    )


@pytest.mark.usefixtures("ray_is_up")
def test_partitions_may_be_texts(folder: Path) -> None:
    names = ["__HIVE_DEFAULT_PARTITION__", "2024-01-01%2000%3A00", "2024-01-01 00:00", "2024-01-02 é"]
    for i, name in enumerate(names):
        write(good(first=1000 * i), folder / f"log/day={name}/odd.parquet")
    manifest = run(folder, logs={"splits": {"train": ["2024", "2025"], "test": ["1", "2"]}})
    assert {p.value: p.kept for p in manifest.partitions} == {"1": ROWS, "2": ROWS} | dict.fromkeys(names[1:], ROWS)
    assert manifest.ignored_partitions == names[:1]
    for partition in manifest.partitions:
        assert len(read_lanes(folder / "table", partition)) == ROWS


@pytest.mark.parametrize("place", [b"log/day=\xff", b"log/day=1/\xff.parquet", b"log/day=1/\xff/odd.parquet"])
def test_names_that_are_not_utf8_are_refused(folder: Path, place: bytes) -> None:
    (folder / os.fsdecode(place)).mkdir(parents=True)
    refused(folder, [r"name is not UTF-8: b'.*\\xff.*'\. Rename it"])


# Keys whose type differs between files: (description, values, parts of the error message; none if all values fit)
KEYS: list[tuple[str, pa.Array, list[str]]] = [
    ("int32", pa.array([1, 2], pa.int32()), []),
    ("uint64 that fits", pa.array([1, 2], pa.uint64()), []),
    ("uint64 beyond int64", pa.array([1, 2**63], pa.uint64()), ["'row' is uint64 in .*day=1/odd.parquet, but int64"]),
    ("floats", pa.array([1.5, float("nan"), None]), []),
    ("floats beside large integers", pa.array([0.5]), ["'row' is int64 in .*day=2/large.parquet, but double"]),
]


@pytest.mark.usefixtures("ray_is_up")
@pytest.mark.parametrize(("values", "messages"), [c[1:] for c in KEYS], ids=[c[0] for c in KEYS])
def test_keys_of_several_types_fit_or_are_refused(folder: Path, values: pa.Array, messages: list[str]) -> None:
    write(with_column("row", values), folder / "log/day=1/odd.parquet")
    if messages and "double" in messages[0]:
        write(with_column("row", pa.array([2**60 + 1])), folder / "log/day=2/large.parquet")
    if messages:
        refused(folder, [*messages, "not every value fits", "one type in all files"])
        return
    train = first_day(run(folder))
    missing = sum(value is None or value != value for value in values.to_pylist())
    assert train.reasons == ({"key row: value is missing": missing} if missing else {})
    kept = read_lanes(folder / "table", train)["key:row"].to_pylist()
    assert sorted(kept) == sorted([*range(ROWS), *(v for v in values.drop_null().to_pylist() if v == v)])


@pytest.mark.usefixtures("ray_is_up")
def test_keys_that_are_not_utf8_are_quarantined(folder: Path) -> None:
    write(with_column("item", BROKEN_TEXT), folder / "log/day=1/odd.parquet")
    train = first_day(run(folder, logs={"keys": ["row", "item"]}))
    assert train.reasons == {"key item: text is not UTF-8": 3}
    assert quarantined_rows(folder / "table", train) == [101, 102, 104]
    assert read_lanes(folder / "table", train)["key:item"].to_pylist()[-2:] == ["i1", "é"]


VIEWS = [
    pa.array(["a" * 20, None], pa.string_view()),
    pa.array([b"\xff", None], pa.binary_view()),
    pa.array([["a"], None], pa.list_(pa.string_view())),
]


@pytest.mark.usefixtures("ray_is_up")
@pytest.mark.parametrize("values", VIEWS, ids=[str(values.type) for values in VIEWS])
def test_keys_may_have_view_types_in_kept_and_quarantined_rows(folder: Path, values: pa.Array) -> None:
    for day, first in (("1", 0), ("2", 50)):
        write(good(2, first).append_column("view", values), folder / f"log/day={day}/good.parquet")
    train = first_day(run(folder, logs={"keys": ["row", "view"]}))
    assert train.reasons == {"key view: value is missing": 1}
    assert read_lanes(folder / "table", train)["key:view"].to_pylist() == values[:1].to_pylist()
    assert quarantined_rows(folder / "table", train, "view") == [None]


@pytest.mark.usefixtures("ray_is_up")
def test_scenarios_that_are_not_utf8_are_other_scenarios(folder: Path) -> None:
    write(with_column("item", BROKEN_TEXT), folder / "log/day=1/odd.parquet")
    train = first_day(run(folder, scenarios=[{"name": "item", "column": "item", "values": ["i1", "i2"]}]))
    assert read_lanes(folder / "table", train)["scenario:item"].to_pylist()[-5:] == [0, 2, 2, 2, 2]


def joined(folder: Path, key: str = "item") -> dict[str, Any]:
    return {"features": [*FEATURES, BRAND], "logs": {"joins": [{"path": str(folder / "side.parquet"), "key": key}]}}


def side(item: Any, brand: Any) -> pa.Table:
    return pa.table({"item": item, "brand": brand})


SIDE = side(["i0", "i1"], ["x", "y"])

# (description, the side table, ids of the brands of the items i0, i1, i2)
SIDES: list[tuple[str, pa.Table, list[int]]] = [
    ("without rows", SIDE.slice(0, 0), [0, 0, 0]),
    ("null and NaN", side(pa.array(["i0", None, "i1"]), pa.array([None, "x", "y"])), [0, 2, 0]),
    ("a column of nulls", side(["i0"], pa.nulls(1)), [0, 0, 0]),
    ("dictionaries", side(*(pa.array(c).dictionary_encode() for c in (["i0", "i1"], ["x", None]))), [2, 0, 0]),
    ("string_view", side(*(pa.array(c, pa.string_view()) for c in (["i0", "i1"], ["x", None]))), [2, 0, 0]),
    ("numbers beyond int64", side(["i0", "i1"], pa.array([2**64 - 1, 5], pa.uint64())), [2, 3, 0]),
    ("texts that are not UTF-8", side(texts(b"i0", b"\xff", b"i1"), texts(b"\xff", b"", b"\xfe")), [3, 2, 0]),
    ("a duplicate column that is not used", twice(SIDE.append_column("x", SIDE["item"]), "x"), [2, 3, 0]),
]


@pytest.mark.usefixtures("ray_is_up")
@pytest.mark.parametrize(("table", "brands"), [c[1:] for c in SIDES], ids=[c[0] for c in SIDES])
def test_side_tables_are_joined(folder: Path, table: pa.Table, brands: list[int]) -> None:
    write(table, folder / "side.parquet")
    manifest = run(folder, **joined(folder))
    assert read_lanes(folder / "table", first_day(manifest))["brand"].to_pylist() == 2 * brands
    keys = {"1": list(range(ROWS)), "2": list(range(50, 50 + ROWS))}
    check_nothing_is_lost(folder, manifest, {**TABLES, "brand": "brand"}, keys)


def side_folder(*tables: pa.Table) -> Break:
    def write_all(path: Path) -> None:
        for i, table in enumerate(tables):
            write(table, path / f"{i}.parquet")

    return write_all


def as_file(table: pa.Table) -> Break:
    return lambda path: write(table, path)


BAD_SIDES: list[tuple[str, Break, list[str]]] = [
    ("cut off", cut, [r"logs.joins.0.path: .*side.parquet cannot be read as Parquet"]),
    ("zero bytes", lambda path: path.write_bytes(b""), ["logs.joins.0.path: .*cannot be read as Parquet"]),
    ("a column name that is not UTF-8", odd_column_name, ["logs.joins.0.path: .*cannot be read as Parquet"]),
    ("a folder without files", lambda path: path.mkdir(), ["logs.joins.0.key: .*has no column 'item'"]),
    ("a file without a column", side_folder(SIDE, SIDE.select(["item"])), ["1.parquet has no column 'brand'"]),
    ("a key in another case", as_file(SIDE.rename_columns(["Item", "brand"])), ["did you mean 'Item'"]),
    ("a duplicate key column", as_file(twice(SIDE, "item")), ["logs.joins.0.key: .*has 2 columns 'item'"]),
    ("a duplicate column", as_file(twice(SIDE, "brand")), ["The side table .* has 2 columns 'brand'"]),
    ("a moment as key", as_file(side(MOMENT, ["x"])), [r"'item' of .* is timestamp\[us\]; a key must be"]),
    ("a struct as id", as_file(side(["i0"], STRUCT)), ["'brand', which feature 'brand' .* is struct.* side table"]),
    ("duplicate keys", as_file(side(texts(b"\xff", b"\xff"), ["x", "y"])), [r"for example '\\xff'", "one row per key"]),
    ("numbers as keys", as_file(side([1], ["x"])), ["'item' is text in the log but int in"]),
    ("fractions as keys", as_file(side([1, 2.5], ["x", "y"])), ["1 values of the key .* for example 2.5"]),
]


@pytest.mark.parametrize(("damage", "messages"), [c[1:] for c in BAD_SIDES], ids=[c[0] for c in BAD_SIDES])
def test_bad_side_tables_are_refused(folder: Path, damage: Break, messages: list[str]) -> None:
    damage(folder / "side.parquet")
    refused(folder, messages, **joined(folder))


@pytest.mark.usefixtures("ray_is_up")
def test_join_keys_that_are_null_or_fractional_match_no_row(folder: Path) -> None:
    odd = with_column("heat", pa.array([0.0, None, 0.5, float("nan"), 1.0]))
    write(odd, folder / "log/day=1/odd.parquet")
    write(pa.table({"heat": [0, 1, None], "brand": ["x", "y", "z"]}), folder / "side.parquet")
    sections = joined(folder, "heat")
    brand = {"name": "brand", "column": "brand", "kind": "categorical", **IDS}
    train = first_day(run(folder, **{**sections, "features": [brand]}))
    assert (train.kept, train.missing["brand"]) == (ROWS + 5, 3 + 4)
    assert read_lanes(folder / "table", train)["brand"].to_pylist()[-5:] == [2, 0, 0, 0, 3]
