"""For columns of any type: no row is lost, and the kernels agree with plain Python."""

import math
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.features.encoders import Encoder, HashEncoder, QuantileEncoder, StandardizeEncoder
from pipeline.features.values import (
    INDISTINCT,
    Column,
    as_ids,
    as_lists,
    as_numbers,
    count_values,
    factorize,
    hash_values,
    positions,
)
from pipeline.preprocess.discover import read_files
from pipeline.preprocess.partitions import find_partitions
from pipeline.preprocess.preprocess_plan import make_preprocess_plan
from pipeline.preprocess.rows import judge
from pipeline.preprocess.transform import Transform, encode_rows
from pipeline.preprocess.units import UnitRows, all_columns, cut_units
from tests.preprocess.logs import experiment
from tests.preprocess.test_bad_logs import FEATURES, TAB, TABLES, TASKS, check_nothing_is_lost, good, run, texts, write

INTEGERS = [pa.int8(), pa.int32(), pa.int64(), pa.uint8(), pa.uint64()]
NUMBERS = [*INTEGERS, pa.float32(), pa.float64(), pa.bool_()]
TEXTS = [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
TYPES: dict[str, list[pa.DataType]] = {
    "user": NUMBERS,
    "item": TEXTS,
    "price": NUMBERS,
    "heat": NUMBERS,
    "words": TEXTS,
    "tags": [pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.null()],
    "seen": [pa.list_(pa.int64()), pa.large_list(pa.uint64()), pa.list_(pa.int8())],
    "tab": [*NUMBERS, pa.null()],
    "click": NUMBERS,
    "spent": NUMBERS,
    "rating": NUMBERS,
}
"""The types that each column may have."""

PARTS = [b"", b" ", b"a", b"i1", b"a,b", " é\u3000, x".encode(), b"\xff", b"caf\xe9, ", b"\0", b"x" * 40]


@st.composite
def arrays(draw: st.DrawFn, type_: pa.DataType, rows: int) -> pa.Array:
    """Values of a type, including nulls, the smallest and largest integers, NaN, and bytes that are not UTF-8."""
    if pa.types.is_null(type_):
        return pa.nulls(rows)
    if pa.types.is_dictionary(type_):
        return draw(arrays(pa.string(), rows)).dictionary_encode()
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        ends = np.cumsum(draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows)), dtype=np.int64)
        offsets = pa.array([0, *ends], pa.int64() if pa.types.is_large_list(type_) else pa.int32())
        kind = pa.LargeListArray if pa.types.is_large_list(type_) else pa.ListArray
        lists = kind.from_arrays(offsets, draw(arrays(type_.value_type, int(offsets[-1].as_py()))))
        return lists.take(with_nulls(draw, rows))
    if pa.types.is_string(type_) or pa.types.is_large_string(type_):
        parts = draw(st.lists(st.sampled_from(PARTS), min_size=rows, max_size=rows))
        return texts(*parts).cast(type_).take(with_nulls(draw, rows))
    return pa.array(draw(st.lists(st.none() | values_of(type_), min_size=rows, max_size=rows)), type_)


def with_nulls(draw: st.DrawFn, rows: int) -> pa.Array:
    known = draw(st.lists(st.sampled_from([True, True, True, False]), min_size=rows, max_size=rows))
    return pa.array([i if is_known else None for i, is_known in enumerate(known)], pa.int64())


def values_of(type_: pa.DataType) -> st.SearchStrategy[Any]:
    if pa.types.is_boolean(type_):
        return st.booleans()
    if pa.types.is_floating(type_):
        return st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5]) | st.floats(width=type_.bit_width)
    first = 0 if pa.types.is_unsigned_integer(type_) else -(2 ** (type_.bit_width - 1))
    last = first + 2**type_.bit_width - 1
    return st.sampled_from([0, 1, 1, 2, first, last]) | st.integers(first, last)


@st.composite
def logs(draw: st.DrawFn, misfits: bool) -> pa.Table:
    """A log file in which every column but `row` may be random; with `misfits`, a column may have an unusable type."""
    rows = draw(st.integers(1, 6))
    table = good(rows, first=draw(st.sampled_from([1000, 2000])))
    names = table.column_names[1:]
    misfit = draw(st.sampled_from([*[None] * 50, *names])) if misfits else None
    for i, name in enumerate(names, start=1):
        # Labels and scenarios are good most of the time, because otherwise hardly any row would be kept.
        if name == misfit:
            table = table.set_column(i, name, pa.nulls(rows, pa.timestamp("us")))
        elif name not in ("click", "spent", "rating", "tab") or draw(st.integers(0, 3)) == 0:
            table = table.set_column(i, name, draw(arrays(draw(st.sampled_from(TYPES[name])), rows)))
    return table


SLOW = settings(derandomize=True, deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
FEWER = settings(SLOW, max_examples=120)
MANY = settings(SLOW, max_examples=200)


@pytest.mark.usefixtures("ray_is_up")
@SLOW
@given(logs(misfits=True), logs(misfits=True))
def test_a_table_accounts_for_every_row_or_is_not_made(first: pa.Table, second: pa.Table) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys = {}
        for day, odd in (("1", first), ("2", second)):
            write(good(3, first=int(day)), folder / f"log/day={day}/good.parquet")
            write(odd, folder / f"log/day={day}/odd.parquet", row_group_size=4)
            keys[day] = [*range(int(day), int(day) + 3), *odd["row"].to_pylist()]
        try:
            manifest = run(folder)
        except UserError:
            assert not (folder / "table/manifest.json").exists()
        else:
            check_nothing_is_lost(folder, manifest, TABLES, keys)


ENCODERS: dict[str, Encoder] = {
    **{name: HashEncoder(5) for name in ("user", "item", "hashed", "words", "tags")},
    "price": QuantileEncoder(np.array([0.0, 2.0]), 3),
    "log_price": StandardizeEncoder(0.5, 1e-9, log1p=True),
    "heat": StandardizeEncoder(0.5, 1e-9, log1p=False),
}


def first_fault(row: dict[str, Any], types: pa.Schema) -> str | None:
    """The reason why a row cannot be used, computed in plain Python."""
    tab_limit, user_limit = (limit(types.field(name).type) for name in ("tab", "user"))
    click, spent, rating = (
        math.nan if row[name] is None else float(row[name]) for name in ("click", "spent", "rating")
    )
    largest = float(np.finfo(np.float32).max)
    for task, label in (("click", click), ("spent", spent), ("rating", rating)):
        if math.isnan(label):
            return f"task {task}: label is missing"
        if math.isinf(label):
            return f"task {task}: label is infinite"
        if task == "click" and label not in (0, 1):
            return "task click: label is neither 0 nor 1"
        if task == "spent" and label < 0:
            return "task spent: label is negative, where log1p expects 0 or more"
        if task == "rating" and abs(label * 1000) > largest:
            return "task rating: label is too large for float32"
    if isinstance(row["tab"], float) and math.isfinite(row["tab"]) and abs(row["tab"]) >= tab_limit:
        return f"scenario tab: {INDISTINCT}"
    if row["tab"] is None or (isinstance(row["tab"], float) and not is_whole(row["tab"], tab_limit)):
        return "scenario tab: value is missing or not a whole number"
    if isinstance(row["user"], float) and math.isfinite(row["user"]) and abs(row["user"]) >= user_limit:
        return f"feature user: {INDISTINCT}"
    if isinstance(row["user"], float) and not math.isnan(row["user"]) and not is_whole(row["user"], user_limit):
        return "feature user: value is not a whole number"
    price, heat = (0.0 if row[name] is None else float(row[name]) for name in ("price", "heat"))
    if math.isinf(price):
        return "feature price: value is infinite"
    if price <= -1:
        return "feature log_price: value is -1 or less, outside log1p"
    if math.isinf(heat):
        return "feature heat: value is infinite"
    return "feature heat: value is too large for float32" if abs(heat) > largest else None


def limit(type_: pa.DataType) -> int:
    """From here on a float of this type is not the only whole number that rounds to it."""
    return {pa.float16(): 2**11, pa.float32(): 2**24}.get(type_, 2**53)


def is_whole(number: float, below: int) -> bool:
    return math.isfinite(number) and number.is_integer() and abs(number) < below


@FEWER
@given(logs(misfits=False))
def test_rows_are_judged_as_in_plain_python_and_encoded(odd: pa.Table) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(odd, folder / "log/day=1/odd.parquet")
        whole = experiment(
            folder, logs={"joins": [], "splits": {"train": [1, 1]}}, features=FEATURES, scenarios=[TAB], tasks=TASKS
        )
        sections = whole.table_experiment
        (found,) = read_files(whole.logs, find_partitions(whole.logs).partitions)
        plan = make_preprocess_plan(sections, str(folder / "table"), found.files)
        (unit,) = cut_units(found)
        rows = UnitRows(plan, unit, all_columns(plan))
        verdict = judge(sections, plan.sources, rows)
        reasons = [verdict.reasons[code - 1] if code else None for code in verdict.codes]
        numeric = odd.select(["click", "spent", "rating", "tab", "user", "price", "heat"]).to_pylist()
        assert reasons == [first_fault(row, odd.schema) for row in numeric]
        encoded, counts = encode_rows(Transform(plan, ENCODERS), rows, verdict.kept)
        assert encoded["key:row"].to_pylist() == odd["row"].take(pa.array(verdict.kept)).to_pylist()
        for column in encoded.columns:
            values = column.combine_chunks()
            assert np.isfinite((values.flatten() if pa.types.is_list(values.type) else values).to_numpy()).all()
        assert counts.missing["item"] == sum(not item.is_valid for item in odd["item"].take(pa.array(verdict.kept)))


@st.composite
def parts_of(draw: st.DrawFn, types: list[pa.DataType]) -> pa.Array:
    """A slice of an array: its buffers may start before its first value."""
    array = draw(arrays(draw(st.sampled_from(types)), draw(st.integers(0, 9))))
    first = draw(st.integers(0, len(array)))
    return array.slice(first, draw(st.integers(0, len(array))))


def plain(values: pa.Array) -> list[Any]:
    """Values as Python objects, texts as bytes."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    return (values.cast(pa.large_binary()) if is_text else values).to_pylist()


def plain_id(value: Any, below: int = 2**53) -> Any:
    if isinstance(value, float):
        return int(value) if is_whole(value, below) else None
    if isinstance(value, int):
        return int(value) - 2**64 if value >= 2**63 else int(value)
    return value


def kind_of(values: pa.Array) -> Any:
    return "int" if pa.types.is_primitive(values.type) else "text"


@MANY
@given(parts_of([*NUMBERS, pa.float16(), pa.string(), pa.large_string(), pa.null()]))
def test_ids_equal_those_of_plain_python(values: pa.Array) -> None:
    ids, wrong = as_ids(values, kind_of(values))
    below = limit(values.type)
    assert plain(ids) == [plain_id(value, below) for value in plain(values)]
    floats = [isinstance(value, float) and not math.isnan(value) for value in plain(values)]
    wholes = [plain_id(value, below) is not None for value in plain(values)]
    assert wrong.tolist() == [is_float and not whole for is_float, whole in zip(floats, wholes, strict=True)]


@MANY
@given(parts_of([*NUMBERS, pa.null()]))
def test_numbers_equal_those_of_plain_python(values: pa.Array) -> None:
    expected = [math.nan if value is None else float(value) for value in values.to_pylist()]
    np.testing.assert_array_equal(as_numbers(values), expected)


@MANY
@given(parts_of([pa.list_(pa.string()), pa.large_list(pa.uint64()), pa.list_(pa.bool_())]))
def test_lists_equal_those_of_plain_python(values: pa.Array) -> None:
    lists = as_lists(values, kind_of(values.flatten()), None)
    rows = [plain(row.values) if row.is_valid else [] for row in values]
    kept = [[plain_id(item) for item in row if item is not None] for row in rows]
    assert lists.lengths.tolist() == [len(row) for row in kept]
    assert plain(lists.items) == [item for row in kept for item in row]
    assert lists.dropped.tolist() == [row.count(None) for row in rows]


def stripped(part: bytes) -> bytes:
    try:
        return part.decode().strip().encode()
    except UnicodeDecodeError:
        return part.strip()


@MANY
@given(parts_of([pa.string(), pa.large_string()]))
def test_texts_are_split_as_by_plain_python(values: pa.Array) -> None:
    lists = as_lists(values, "text", ",")
    rows = [[stripped(part) for part in (value or b"").split(b",")] for value in plain(values)]
    kept = [[part for part in row if part] for row in rows]
    assert lists.lengths.tolist() == [len(row) for row in kept]
    assert plain(lists.items) == [part for row in kept for part in row]


@MANY
@given(st.lists(parts_of(TEXTS[2:]), min_size=1, max_size=3), st.lists(parts_of([pa.int64()]), min_size=1, max_size=3))
def test_columns_of_several_chunks_keep_all_values(dictionaries: list[pa.Array], numbers: list[pa.Array]) -> None:
    for chunks in (dictionaries, numbers):
        column = Column.of(pa.chunked_array(chunks))
        assert plain(column.values.take(pa.array(column.rows))) == [value for chunk in chunks for value in plain(chunk)]


@MANY
@given(st.data(), st.sampled_from([pa.int64(), pa.large_string()]))
def test_values_are_counted_found_and_hashed(data: st.DataObject, type_: pa.DataType) -> None:
    chunks = data.draw(st.lists(parts_of([type_]), min_size=1, max_size=3))
    weights = [np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(c), max_size=len(c))), int) for c in chunks]
    counts: Counter[Any] = Counter()
    for chunk, weight in zip(chunks, weights, strict=True):
        for value, times in zip(plain(chunk), weight.tolist(), strict=True):
            counts[value] += times
    counted = count_values(chunks, weights)
    found = dict(zip(plain(counted["value"].combine_chunks()), counted["count"].to_pylist(), strict=True))
    assert len(found) == len(counted)
    assert found == {value: times for value, times in counts.items() if times and value is not None}
    values = chunks[0]
    codes, distinct = factorize(values)
    known = plain(distinct)
    assert len(set(known)) == len(known) and None not in known
    assert [known[code] if code >= 0 else None for code in codes] == plain(values)
    vocabulary = counted["value"].combine_chunks()
    order = {value: i for i, value in enumerate(plain(vocabulary))}
    assert positions(values, vocabulary).tolist() == [order.get(value, -1) for value in plain(values)]
    assume(len(distinct))
    one_by_one = np.array(known, dtype=object if isinstance(known[0], bytes) else np.int64)
    assert hash_values(distinct).tolist() == pd.util.hash_array(one_by_one, categorize=False).tolist()
