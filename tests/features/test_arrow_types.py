"""Normal types: reading a column in them never fails and never changes a value."""

import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.features.arrow_types import has_views, normal, normal_type

KEYS = [pa.string(), pa.int32(), pa.binary(), pa.string_view()]
LEAVES: dict[pa.DataType, list[Any]] = {
    pa.null(): [None],
    pa.bool_(): [True, False],
    pa.int8(): [0, -7],
    pa.uint64(): [2**64 - 1],
    pa.float16(): [np.float16(0.5)],
    pa.float64(): [0.5, -0.0],
    **dict.fromkeys([pa.string(), pa.large_string(), pa.string_view(), pa.json_()], ["", "é", "x" * 40]),
    **dict.fromkeys([pa.binary(), pa.large_binary(), pa.binary_view()], [b"", b"\xff", b"x" * 40]),
    pa.binary(2): [b"ab", b"\xff\0"],
    pa.date32(): [datetime.date(1500, 1, 2)],
    pa.time64("us"): [datetime.time(1, 2)],
    pa.timestamp("us"): [datetime.datetime(1500, 1, 2)],
    pa.timestamp("ms", "UTC"): [datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC)],
    pa.duration("s"): [datetime.timedelta(3)],
    pa.decimal128(5, 2): [Decimal("1.25")],
    pa.decimal256(50, 2): [Decimal("1.25")],
    pa.int32(): [0, 3],
}
DICTIONARIES = [
    pa.dictionary(pa.int8(), pa.string()),
    pa.dictionary(pa.uint16(), pa.int8()),
    pa.dictionary(pa.int32(), pa.binary()),
    pa.dictionary(pa.int64(), pa.float64(), ordered=True),
]


def struct(parts: list[pa.DataType]) -> pa.DataType:
    return pa.struct([(f"f{i}", part) for i, part in enumerate(parts)])


def wider(types: st.SearchStrategy[pa.DataType]) -> st.SearchStrategy[pa.DataType]:
    structs = st.lists(types, min_size=1, max_size=3).map(struct)
    fixed = types.map(lambda type_: pa.list_(type_, 2))
    lists = [types.map(kind) for kind in (pa.list_, pa.large_list, pa.list_view, pa.large_list_view)]
    return st.one_of(structs, fixed, *lists, st.builds(pa.map_, st.sampled_from(KEYS), types))


TYPES = st.recursive(st.sampled_from([*LEAVES, *DICTIONARIES]), wider, max_leaves=5)


def values_of(type_: pa.DataType) -> st.SearchStrategy[Any]:
    """Values of a type, as Python objects; null is one of them."""
    if pa.types.is_dictionary(type_):
        return values_of(type_.value_type)
    if pa.types.is_struct(type_):
        return st.none() | st.fixed_dictionaries({field.name: values_of(field.type) for field in type_})
    if pa.types.is_map(type_):
        key = st.sampled_from(LEAVES[type_.key_type])
        return st.none() | st.lists(st.tuples(key, values_of(type_.item_type)), max_size=2)
    if pa.types.is_fixed_size_list(type_):
        return st.none() | st.lists(values_of(type_.value_type), min_size=2, max_size=2)
    if type_ not in LEAVES:
        return st.none() | st.lists(values_of(type_.value_type), max_size=3)
    return st.none() | st.sampled_from(LEAVES[type_])


@settings(derandomize=True, deadline=None, max_examples=400, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_normalising_never_fails_and_never_changes_a_value(data: st.DataObject) -> None:
    type_ = data.draw(TYPES)
    whole = array(data.draw(st.lists(values_of(type_), min_size=1, max_size=4)), type_)
    first = data.draw(st.integers(0, len(whole)))
    column = pa.chunked_array([whole, whole.slice(first)])
    read = normal(column)
    read.validate(full=True)
    assert read.type == normal_type(type_)
    assert read.to_pylist() == column.to_pylist()
    assert not has_views(read.type)
    assert read.take(pa.array([len(read) - 1, 0])).to_pylist() == [column.to_pylist()[-1], column.to_pylist()[0]]


def array(values: list[Any], type_: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, type_)
    except pa.ArrowNotImplementedError:  # extensions inside other types
        return pa.nulls(len(values), type_)


@pytest.mark.parametrize(
    ("type_", "values"),
    [
        (pa.uuid(), [bytes(range(16)), None]),
        (pa.bool8(), [1, 0, None]),
        (pa.fixed_shape_tensor(pa.int8(), [2]), [[1, 2], None]),
    ],
)
def test_extensions_are_read_as_their_storage_at_every_depth(type_: pa.BaseExtensionType, values: list[Any]) -> None:
    extension = pa.ExtensionArray.from_storage(type_, pa.array(values, type_.storage_type))
    for column, expected in (
        (extension, values),
        (pa.ListArray.from_arrays([0, 1, len(values)], extension), [values[:1], values[1:]]),
        (pa.StructArray.from_arrays([extension], ["a"]), [{"a": value} for value in values]),
    ):
        assert normal(pa.chunked_array([column])).to_pylist() == expected
