"""Broken logs: each works, or loses rows or files for a counted reason, or ends with one clear UserError."""

import re
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.features.values import INDISTINCT
from pipeline.preprocess.job import preprocess
from pipeline.table.manifest import Manifest, Partition
from tests.preprocess.logs import experiment

IDS: dict[str, Any] = {"ids": {"vocabulary": {}}, "dim": 2}
FEATURES: list[dict[str, Any]] = [
    {"name": "user", "column": "user", "kind": "categorical", **IDS},
    {"name": "item", "column": "item", "kind": "categorical", **IDS},
    {"name": "hashed", "column": "item", "kind": "categorical", "ids": {"hash": 7}, "dim": 2},
    {"name": "price", "column": "price", "kind": "numeric", "encode": {"quantiles": 4}, "dim": 2},
    {"name": "log_price", "column": "price", "kind": "numeric", "encode": {"standardize": "log1p"}},
    {"name": "heat", "column": "heat", "kind": "numeric", "encode": {"standardize": "identity"}},
    {"name": "words", "column": "words", "kind": "multivalued", "separator": ",", **IDS},
    {"name": "tags", "column": "tags", "kind": "multivalued", **IDS},
    {"name": "seen", "column": "seen", "kind": "sequence", "shares": "user", "max_length": 3},
]
BRAND: dict[str, Any] = {"name": "brand", "column": "brand", "kind": "categorical", **IDS}
TASKS: list[dict[str, Any]] = [
    {"name": "click", "column": "click", "kind": "binary"},
    {"name": "spent", "column": "spent", "kind": "continuous", "transform": "log1p"},
    {"name": "rating", "column": "rating", "kind": "continuous", "scale": 1000.0},
]
TAB: dict[str, Any] = {"name": "tab", "column": "tab", "values": [1, 0]}
ROWS = 6
NAN, INF = float("nan"), float("inf")


def good(rows: int = ROWS, first: int = 100) -> pa.Table:
    """Rows without a fault."""
    numbers = list(range(rows))
    return pa.table(
        {
            "row": pa.array([first + n for n in numbers], pa.int64()),
            "user": pa.array([n % 4 for n in numbers], pa.int64()),
            "item": pa.array([f"i{n % 3}" for n in numbers], pa.string()),
            "price": pa.array([n + 0.5 for n in numbers], pa.float64()),
            "heat": pa.array([n - 2.0 for n in numbers], pa.float64()),
            "words": pa.array([f"w{n}, common" for n in numbers], pa.string()),
            "tags": pa.array([["a", f"t{n % 2}"] for n in numbers], pa.list_(pa.string())),
            "seen": pa.array([[n % 4, 0] for n in numbers], pa.list_(pa.int64())),
            "tab": pa.array([n % 2 for n in numbers], pa.int64()),
            "click": pa.array([n % 2 for n in numbers], pa.int64()),
            "spent": pa.array([n * 1.5 for n in numbers], pa.float64()),
            "rating": pa.array([n - 1.0 for n in numbers], pa.float64()),
        }
    )


def with_column(name: str, values: pa.Array) -> pa.Table:
    table = good(len(values))
    return table.set_column(table.column_names.index(name), name, values)


def texts(*parts: bytes) -> pa.Array:
    """A string column of arbitrary bytes, which Arrow and Parquet keep unchanged."""
    ends = np.cumsum([0, *(len(part) for part in parts)]).astype(np.int32)
    return pa.Array.from_buffers(pa.string(), len(parts), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(parts))])


BROKEN_TEXT = texts(b"i1", b"\xff\xfe", b"caf\xe9", "é".encode(), b"\xff\xfe")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good days. Tests add a file `odd.parquet`, most of them to day 1, on which the encoders are fitted."""
    write(good(first=0), tmp_path / "log/day=1/good.parquet")
    write(good(first=50), tmp_path / "log/day=2/good.parquet")
    return tmp_path


def write(table: pa.Table, path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)


def run(folder: Path, into: str = "table", **sections: Any) -> Manifest:
    logs = {
        "joins": [],
        "splits": {"train": [1, 1], "test": [2, 9]},
        "max_quarantined": 1.0,
        **sections.pop("logs", {}),
    }
    given = {"features": FEATURES, "tasks": TASKS, "scenarios": [TAB], **sections}
    return preprocess(experiment(folder, logs=logs, **given), str(folder / into))


def refused(folder: Path, messages: list[str], **sections: Any) -> None:
    """The job ends with one error that contains all messages, and there is no finished table."""
    with pytest.raises(UserError) as error:
        run(folder, **sections)
    for part in messages:
        assert re.search(part, str(error.value)), f"{part!r} is not in: {error.value}"
    assert "\n" not in str(error.value)
    assert not (folder / "table/manifest.json").exists()


def first_day(manifest: Manifest) -> Partition:
    (partition,) = manifest.split("train")
    return partition


def read_lanes(table: Path, partition: Partition) -> pa.Table:
    """All kept rows of a partition, in the order of their key `row`."""
    files = [table / file.path for lane in partition.lanes for file in lane]
    read = [pq.ParquetFile(path).read() for path in files]
    assert [len(part) for part in read] == [file.rows for lane in partition.lanes for file in lane]
    return pa.concat_tables(read).sort_by("key:row")


def quarantined_rows(table: Path, partition: Partition, column: str = "row") -> list[Any]:
    files = sorted((table / f"quarantine/day={partition.value}").glob("*.parquet"))
    return [value for path in files for value in pq.read_table(path, partitioning=None)[column].to_pylist()]


def check_nothing_is_lost(folder: Path, manifest: Manifest, tables: dict[str, str], keys: dict[str, list[Any]]) -> None:
    """Every row is kept or quarantined exactly once; ids are within their tables and numbers are finite.

    Args:
        tables: embedding table of each column of ids.
        keys: values of `row` in each partition of the log.
    """
    for partition in manifest.partitions:
        assert (
            partition.rows_read == partition.kept + partition.quarantined + partition.filtered + partition.sampled_out
        )
        assert sum(partition.reasons.values()) == partition.quarantined
        rejected = quarantined_rows(folder / "table", partition)
        assert len(rejected) == partition.quarantined
        kept = read_lanes(folder / "table", partition) if partition.kept else None
        found = rejected + (kept["key:row"].to_pylist() if kept is not None else [])
        if partition.filtered == 0:
            assert Counter(found) == Counter(keys[partition.value])
        assert len(keys[partition.value]) == partition.rows_read
        for name, values in zip(kept.column_names, kept.columns, strict=True) if kept is not None else ():
            if name.startswith("key:"):
                continue
            numbers = (values.combine_chunks().flatten() if pa.types.is_list(values.type) else values).to_numpy()
            assert np.isfinite(numbers).all(), name
            if name in tables and len(numbers):
                assert numbers.min() >= 0 and numbers.max() < manifest.table_rows[tables[name]], name


TABLES = {name: name for name in ("user", "item", "hashed", "price", "words", "tags")} | {"seen": "user"}

NOT_WHOLE = "feature user: value is not a whole number"
TOO_WIDE = f"feature user: {INDISTINCT}"
INFINITE = "feature price: value is infinite"
OUTSIDE = "feature log_price: value is -1 or less, outside log1p"
TOO_LARGE = "feature heat: value is too large for float32"
NO_CLICK, NO_SPENT = "task click: label is missing", "task spent: label is missing"
INFINITE_CLICK, NO_BINARY = "task click: label is infinite", "task click: label is neither 0 nor 1"
NEGATIVE = "task spent: label is negative, where log1p expects 0 or more"
RATING_INFINITE, RATING_LARGE = "task rating: label is infinite", "task rating: label is too large for float32"
NO_TAB = "scenario tab: value is missing or not a whole number"
NO_KEY = "key row: value is missing"

# (description, column, values of a file, number of quarantined rows by reason)
VALUES: list[tuple[str, str, pa.Array, dict[str, int]]] = [
    ("ids as int32", "user", pa.array([1, 2, None], pa.int32()), {}),
    ("ids as uint64 up to the largest", "user", pa.array([1, 2**63, 2**64 - 1], pa.uint64()), {}),
    ("ids as floats", "user", pa.array([1.0, 2.0**53 - 1, 2.5, INF, NAN, None]), {NOT_WHOLE: 2}),
    ("ids as floats that are too large", "user", pa.array([1e300, -1e19, 2.0**53, 2.0**53 + 2, 1.0]), {TOO_WIDE: 4}),
    ("ids as float32", "user", pa.array([2.0**24, 2.0**24 - 1, -(2.0**24)], pa.float32()), {TOO_WIDE: 2}),
    ("ids as float16", "user", pa.array(np.array([2048, 2047, 0.5], np.float16)), {TOO_WIDE: 1, NOT_WHOLE: 1}),
    ("ids as dictionary", "user", pa.array([1, None, 1, 7]).dictionary_encode(), {}),
    ("ids as booleans", "user", pa.array([True, None]), {}),
    ("no id at all", "user", pa.nulls(3), {}),
    ("no text at all", "item", pa.nulls(3), {}),
    ("texts as dictionary", "item", pa.array(["i1", None, "new"]).dictionary_encode(), {}),
    ("texts as large_string", "item", pa.array(["i1", None, ""], pa.large_string()), {}),
    ("texts as bytes", "item", pa.array([b"i1", None, b"\xff"]), {}),
    ("texts as bytes of a fixed size", "item", pa.array([b"i1", None], pa.binary(2)), {}),
    ("texts as binary_view", "item", pa.array([b"i1", None, b"more than twelve bytes"], pa.binary_view()), {}),
    ("texts as dictionary of bytes", "item", pa.array([b"i1", None, b"i1"]).dictionary_encode(), {}),
    ("texts as string_view", "item", pa.array(["i1", None, "more than twelve bytes"], pa.string_view()), {}),
    ("texts that are not UTF-8", "item", BROKEN_TEXT, {}),
    ("texts to be split that are not UTF-8", "words", texts(b" a ,\xff ", b"\xff,", b",", "\u3000a".encode()), {}),
    ("texts to be split with nothing in them", "words", pa.array(["", " ", ",,", " , ", None]), {}),
    ("lists of texts that are not UTF-8", "tags", pa.ListArray.from_arrays([0, 2, 2, 5], BROKEN_TEXT), {}),
    ("nulls inside lists", "tags", pa.array([[None], ["a", None], [], None], pa.list_(pa.string())), {}),
    ("lists of nulls only", "tags", pa.array([[None], [], None], pa.list_(pa.null())), {}),
    (
        "lists of dictionary texts",
        "tags",
        pa.ListArray.from_arrays([0, 2], pa.array(["a", None]).dictionary_encode()),
        {},
    ),
    ("lists of string_view", "tags", pa.array([["a", None], None, []], pa.list_(pa.string_view())), {}),
    ("lists as large_list", "seen", pa.array([[1, 2], None, [None]], pa.large_list(pa.int32())), {}),
    ("lists of a fixed size", "seen", pa.array([[1, 2], None, [None, 3]], pa.list_(pa.uint64(), 2)), {}),
    ("no list at all", "seen", pa.nulls(3), {}),
    ("numbers that are not finite", "price", pa.array([INF, -INF, NAN, None, 1e308]), {INFINITE: 2}),
    ("numbers as float16", "price", pa.array(np.array([1, NAN, INF], np.float16)), {INFINITE: 1}),
    ("numbers as uint64", "price", pa.array([0, 2**64 - 1], pa.uint64()), {}),
    ("numbers as booleans", "price", pa.array([True, False, None]), {}),
    ("no number at all", "price", pa.nulls(3), {}),
    ("numbers outside log1p", "price", pa.array([-1.0, -7.0, -0.5]), {OUTSIDE: 2}),
    ("counts below 0", "price", pa.array([-1, -(2**63), 3]), {OUTSIDE: 2}),
    ("numbers without a square", "heat", pa.array([1e308, -1e300, 1e38]), {TOO_LARGE: 2}),
    ("no label at all", "click", pa.nulls(3), {NO_CLICK: 3}),
    (
        "labels that are not finite or not 0 or 1",
        "click",
        pa.array([NAN, INF, -INF, 0.5]),
        {INFINITE_CLICK: 2, NO_CLICK: 1, NO_BINARY: 1},
    ),
    ("labels that are other integers", "click", pa.array([2, 2**64 - 1, 0, 1], pa.uint64()), {NO_BINARY: 2}),
    ("labels as booleans", "click", pa.array([True, False, None]), {NO_CLICK: 1}),
    ("labels below 0", "spent", pa.array([-1, 0, None]), {NO_SPENT: 1, NEGATIVE: 1}),
    ("labels beyond float32", "rating", pa.array([1e308, 1e36, 1e35, -INF]), {RATING_LARGE: 2, RATING_INFINITE: 1}),
    ("scenarios that were not expected", "tab", pa.array([7, -1, 2**63 - 1], pa.int64()), {}),
    ("scenarios beyond int64", "tab", pa.array([1, 2**64 - 1], pa.uint64()), {}),
    ("scenarios as floats", "tab", pa.array([1.0, 0.5, NAN, INF, None]), {NO_TAB: 4}),
    ("no scenario at all", "tab", pa.nulls(2), {NO_TAB: 2}),
    ("keys that are null", "row", pa.array([None, 5], pa.int64()), {NO_KEY: 1}),
    ("no key at all", "row", pa.nulls(2), {NO_KEY: 2}),
]


@pytest.mark.usefixtures("ray_is_up")
@pytest.mark.parametrize(("column", "values", "reasons"), [c[1:] for c in VALUES], ids=[c[0] for c in VALUES])
def test_bad_values_are_read_or_quarantined(
    folder: Path, column: str, values: pa.Array, reasons: dict[str, int]
) -> None:
    odd = with_column(column, values)
    write(odd, folder / "log/day=1/odd.parquet")
    manifest = run(folder)
    assert first_day(manifest).reasons == reasons
    keys = {"1": [*range(ROWS), *odd["row"].to_pylist()], "2": list(range(50, 50 + ROWS))}
    check_nothing_is_lost(folder, manifest, TABLES, keys)


IDS_EXPECTED = "expected whole numbers, texts or booleans"
NUMBERS_EXPECTED = "expected an integer, a float or a boolean"
LISTS_EXPECTED = "expected lists of whole numbers or texts"
MOMENT = pa.array([0], pa.timestamp("us"))
STRUCT = pa.array([{"a": 1}])

# (description, column, its values in one file, further parts of the error message)
TYPES: list[tuple[str, str, pa.Array, list[str]]] = [
    ("int to text", "user", pa.array(["1"]), ["int64 in .*good.parquet but string in", "convert one of them"]),
    ("text to int", "item", pa.array([1]), ["string in .*good.parquet but int64 in"]),
    ("scalar to list", "user", pa.array([[1]]), [r"is list<", IDS_EXPECTED]),
    ("list to scalar", "tags", pa.array(["a"]), ["is string", LISTS_EXPECTED]),
    ("lists of lists", "tags", pa.array([[["a"]]]), ["is list<element: list<", LISTS_EXPECTED]),
    ("lists of floats", "seen", pa.array([[1.0]]), ["is list<element: double>", LISTS_EXPECTED]),
    ("lists of other ids", "seen", pa.array([["1"]]), ["list<element: int64> in .* but list<element: string> in"]),
    ("text to be split as list", "words", pa.array([["a"]]), ["expected text to be split at the separator"]),
    ("a moment as id", "user", MOMENT, [r"is timestamp\[us\]", IDS_EXPECTED]),
    ("a decimal as id", "user", pa.array([Decimal(1)]), ["is decimal128", IDS_EXPECTED]),
    ("bytes to int", "user", pa.array([b"i1"]), ["int64 in .*good.parquet but binary in"]),
    ("a struct as id", "user", STRUCT, ["is struct<a: int64>", IDS_EXPECTED]),
    ("a moment as number", "price", MOMENT, [r"is timestamp\[us\]", NUMBERS_EXPECTED]),
    ("a decimal as number", "price", pa.array([Decimal(1)]), ["is decimal128", NUMBERS_EXPECTED]),
    ("text as number", "price", pa.array(["1.5"]), ["is string", NUMBERS_EXPECTED]),
    ("a list as number", "heat", pa.array([[1.5]]), ["is list<", NUMBERS_EXPECTED]),
    ("text as label", "click", pa.array(["1"]), ["is string", NUMBERS_EXPECTED]),
    ("a moment as label", "click", MOMENT, [r"is timestamp\[us\]", NUMBERS_EXPECTED]),
    ("a struct as label", "spent", STRUCT, ["is struct", NUMBERS_EXPECTED]),
    ("text as scenario", "tab", pa.array(["1"]), ["int64 in .*good.parquet but string in"]),
    ("bytes as scenario", "tab", pa.array([b"1"]), ["int64 in .*good.parquet but binary in"]),
    ("text as key", "row", pa.array(["1"]), ["incompatible types", "int64, string"]),
    ("a struct as key", "row", STRUCT, ["incompatible types", "int64, struct"]),
]


@pytest.mark.parametrize(("column", "values", "messages"), [c[1:] for c in TYPES], ids=[c[0] for c in TYPES])
def test_types_that_do_not_fit_are_refused(folder: Path, column: str, values: pa.Array, messages: list[str]) -> None:
    write(with_column(column, values), folder / "log/day=2/odd.parquet")
    refused(folder, [f"The column '{column}', which ", *messages])
    assert not (folder / "table").exists()


@pytest.mark.parametrize("day", [1, 2])
def test_a_column_name_in_another_case_is_refused(folder: Path, day: int) -> None:
    odd = good().rename_columns(["Item" if name == "item" else name for name in good().column_names])
    write(odd, folder / f"log/day={day}/odd.parquet")
    refused(folder, [rf"day={day}/odd.parquet has no column 'item'", "Rewrite that file .*; did you mean 'Item'"])


@pytest.mark.usefixtures("ray_is_up")
def test_a_new_column_and_another_order_are_accepted(folder: Path) -> None:
    odd = good().append_column("new", pa.array([STRUCT[0].as_py()] * ROWS))
    write(odd.select(odd.column_names[::-1]), folder / "log/day=1/odd.parquet")
    lanes = read_lanes(folder / "table", first_day(run(folder)))
    assert lanes.drop(["key:row"]).slice(0, ROWS).equals(lanes.drop(["key:row"]).slice(ROWS))


def twice(table: pa.Table, name: str) -> pa.Table:
    return table.append_column(name, table[name])


def test_a_duplicate_column_is_refused(folder: Path) -> None:
    write(twice(good(), "item"), folder / "log/day=2/odd.parquet")
    refused(folder, [r"The log file day=2/odd.parquet has 2 columns 'item', which feature 'item'", "not clear which"])


@pytest.mark.usefixtures("ray_is_up")
def test_duplicate_columns_that_are_not_used_are_accepted(folder: Path) -> None:
    odd = with_column("click", pa.array([0, 7])).append_column("x", pa.array(["a", "b"]))
    for name in ("quarantine_row", "x"):
        odd = odd.append_column(name, pa.array([8, 9]))
    write(odd, folder / "log/day=1/odd.parquet")
    train = first_day(run(folder))
    assert train.quarantined == 1
    found = {name: quarantined_rows(folder / "table", train, name) for name in ("x", "x_2", "reason")}
    assert found == {"x": ["b"], "x_2": [9], "reason": ["task click: label is neither 0 nor 1"]}
    assert quarantined_rows(folder / "table", train, "quarantine_row") == [9]
    assert quarantined_rows(folder / "table", train, "quarantine_row_2") == [1]


@pytest.mark.usefixtures("ray_is_up")
def test_duplicate_rows_are_all_kept(folder: Path) -> None:
    write(pa.concat_tables([good(), good()]), folder / "log/day=1/odd.parquet")
    lanes = read_lanes(folder / "table", first_day(run(folder)))
    assert lanes["key:row"].to_pylist() == sorted([*range(ROWS), *2 * list(range(100, 100 + ROWS))])


@pytest.mark.usefixtures("ray_is_up")
def test_unexpected_scenarios_are_filtered_and_missing_ones_quarantined(folder: Path) -> None:
    write(with_column("tab", pa.array([1, None, 7, 2**64 - 1, 0], pa.uint64())), folder / "log/day=1/odd.parquet")
    train = first_day(run(folder, scenarios=[{**TAB, "other": "drop"}]))
    assert (train.kept, train.filtered, train.quarantined) == (ROWS + 2, 2, 1)


@pytest.mark.usefixtures("ray_is_up")
def test_scenarios_may_have_values_beyond_int64(folder: Path) -> None:
    write(with_column("tab", pa.array([5, 2**64 - 1], pa.uint64())), folder / "log/day=1/odd.parquet")
    lanes = read_lanes(folder / "table", first_day(run(folder, scenarios=[{**TAB, "values": [2**64 - 1, 0]}])))
    assert lanes["scenario:tab"].to_pylist()[-2:] == [2, 0]


def test_scenarios_beyond_64_bits_are_refused(folder: Path) -> None:
    refused(folder, [f"scenarios.0.values: .*64 bits.*'tab'.*{2**64}"], scenarios=[{**TAB, "values": [2**64]}])


@pytest.mark.usefixtures("ray_is_up")
def test_large_and_broken_ids_stay_distinct(folder: Path) -> None:
    big = with_column("user", pa.array([2**63, 2**64 - 1, 2**63, 2**62, 7], pa.uint64()))
    write(big.set_column(2, "item", BROKEN_TEXT), folder / "log/day=1/odd.parquet")
    lanes = read_lanes(folder / "table", first_day(run(folder))).slice(ROWS).to_pydict()
    assert len(set(lanes["user"])) == 4 and lanes["user"][0] == lanes["user"][2] and min(lanes["user"]) >= 2
    assert len(set(lanes["item"])) == 4 and lanes["item"][1] == lanes["item"][4] and min(lanes["item"]) >= 2
    assert lanes["hashed"][1] == lanes["hashed"][4]


@pytest.mark.usefixtures("ray_is_up")
@pytest.mark.parametrize(("column", "kept"), [("tags", 10**6), ("seen", 3)])
def test_a_list_may_have_a_million_items(folder: Path, column: str, kept: int) -> None:
    values = np.arange(10**6) % 1000
    items = pa.array(values) if column == "seen" else pa.array(values.astype(str))
    lists = pa.ListArray.from_arrays(pa.array([0, 10**6, 10**6], pa.int32()), items)
    write(with_column(column, lists), folder / "log/day=1/odd.parquet")
    manifest = run(folder)
    lanes = read_lanes(folder / "table", first_day(manifest))
    assert [len(value) for value in lanes[column].to_pylist()[-2:]] == [kept, 0]
    vocabulary = pq.read_table(folder / f"table/encoders/{TABLES[column]}.parquet")["value"].to_pylist()
    ids = lanes[column][-2].as_py()
    assert [str(vocabulary[i - 2]) for i in ids] == values[-kept:].astype(str).tolist()


def small_dictionary(first: int) -> pa.Array:
    """128 texts and a null, in codes of 8 bits."""
    codes = pa.array([*range(128), None], pa.int8())
    return pa.DictionaryArray.from_arrays(codes, [f"i{first + n}" for n in range(128)])


@pytest.mark.usefixtures("ray_is_up")
def test_row_groups_with_small_codes_and_different_dictionaries_are_read(folder: Path) -> None:
    parts = [with_column("item", small_dictionary(first)) for first in (0, 1000)]
    path = folder / "log/day=1/odd.parquet"
    with pq.ParquetWriter(path, parts[0].schema) as writer:
        for part in parts:
            writer.write_table(part)
    train = first_day(run(folder))
    assert train.kept == ROWS + 2 * 129 and train.missing["item"] == 2
    assert len(set(read_lanes(folder / "table", train)["item"].to_pylist())) == 257
