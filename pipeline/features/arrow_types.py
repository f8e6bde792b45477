"""The Arrow types that Parquet files have, and the fewer types in which columns are read.

Every column goes through `normal` when it is read: rows, side tables and quarantine see the same types. Values stay as
they are.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def normal(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The same values in the type of `normal_type`."""
    wanted = normal_type(column.type)
    if column.type == wanted:
        return column
    if pa.types.is_dictionary(wanted):
        return column.cast(wanted)
    return pa.chunked_array([_plain(chunk) for chunk in column.chunks], wanted)


def normal_type(type_: pa.DataType) -> pa.DataType:
    """The type in which a column is read: that of `plain_type`.

    A column that is a dictionary stays one, so that each of its texts is kept and processed only once. Its codes become
    int32: small codes are too narrow for the joint dictionary of several row groups, or for null.
    """
    if pa.types.is_dictionary(type_):
        return pa.dictionary(pa.int32(), plain_type(type_.value_type))
    return plain_type(type_)


def plain_type(type_: pa.DataType) -> pa.DataType:
    """The type without views, dictionaries and extensions, at every depth, and with 64-bit offsets.

    Offsets of 32 bits end at 2 GiB of text per array, and Arrow cannot take values from views.
    """
    if isinstance(type_, pa.BaseExtensionType):
        return plain_type(type_.storage_type)
    if pa.types.is_dictionary(type_):
        return plain_type(type_.value_type)
    if pa.types.is_string(type_) or pa.types.is_string_view(type_):
        return pa.large_string()
    if pa.types.is_binary(type_) or pa.types.is_binary_view(type_):
        return pa.large_binary()
    if _is_any_list(type_):
        return pa.large_list(_plain_field(type_.value_field))
    if pa.types.is_struct(type_):
        return pa.struct([_plain_field(field) for field in type_])
    if pa.types.is_map(type_):
        return pa.map_(_plain_field(type_.key_field), _plain_field(type_.item_field), type_.keys_sorted)
    return type_


def _plain(values: pa.Array) -> pa.Array:
    """The values in their `plain_type`. Built level by level: Arrow's cast damages values of nested list views."""
    type_ = values.type
    wanted = plain_type(type_)
    if type_ == wanted:
        return values
    if isinstance(type_, pa.BaseExtensionType):
        return _plain(values.storage)
    if pa.types.is_dictionary(type_):
        if len(values.dictionary) == 0:  # codes below a null struct may be anything
            return pa.nulls(len(values), wanted)
        return _plain(values.dictionary).take(values.indices)
    if _is_any_list(type_):
        return pa.LargeListArray.from_arrays(*_parts(values), type=wanted, mask=values.is_null())
    if pa.types.is_struct(type_):
        fields = [_plain(values.field(i)) for i in range(type_.num_fields)]
        return pa.StructArray.from_arrays(fields, fields=list(wanted), mask=values.is_null())
    if pa.types.is_map(type_):
        entries = values.cast(pa.list_(pa.struct([type_.key_field, type_.item_field])))
        ends, pairs = _parts(entries)
        keys_and_items = [pairs.field(i) for i in range(2)]
        return pa.MapArray.from_arrays(ends.cast(pa.int32()), *keys_and_items, type=wanted, mask=values.is_null())
    return values.cast(wanted)


def _parts(lists: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Offsets and plain items of lists of any type. Null lists may have items, which nothing reads."""
    items = _plain(lists.values)
    if pa.types.is_fixed_size_list(lists.type):
        size = lists.type.list_size
        return pa.array(np.arange(lists.offset, lists.offset + len(lists) + 1, dtype=np.int64) * size), items
    if not (pa.types.is_list_view(lists.type) or pa.types.is_large_list_view(lists.type)):
        return pa.array(np.array(lists.offsets, dtype=np.int64)), items  # not a slice, which a mask cannot have
    # Views may be in any order, and may overlap.
    lengths = pc.list_value_length(lists).fill_null(0).to_numpy()
    ends = np.append(0, np.cumsum(lengths, dtype=np.int64))
    at = np.repeat(lists.offsets.to_numpy() - ends[:-1], lengths) + np.arange(ends[-1])
    return pa.array(ends), items.take(pa.array(at))


def _plain_field(field: pa.Field) -> pa.Field:
    return field.with_type(plain_type(field.type))


def _is_any_list(type_: pa.DataType) -> bool:
    return (
        pa.types.is_list(type_)
        or pa.types.is_large_list(type_)
        or pa.types.is_fixed_size_list(type_)
        or pa.types.is_list_view(type_)
        or pa.types.is_large_list_view(type_)
    )


def is_list(type_: pa.DataType) -> bool:
    return pa.types.is_large_list(plain_type(type_))


def is_text(type_: pa.DataType) -> bool:
    return pa.types.is_large_string(plain_type(type_))


def is_bytes(type_: pa.DataType) -> bool:
    """Bytes of any length: texts without the mark that they are texts, as Impala and older Hive write them, or ids."""
    plain = plain_type(type_)
    return pa.types.is_large_binary(plain) or pa.types.is_fixed_size_binary(plain)


def is_float(type_: pa.DataType) -> bool:
    return pa.types.is_floating(plain_type(type_))


def is_number(type_: pa.DataType) -> bool:
    plain = plain_type(type_)
    return pa.types.is_integer(plain) or pa.types.is_floating(plain) or pa.types.is_boolean(plain)


def has_views(type_: pa.DataType) -> bool:
    """Whether the type is or contains a view, from which Arrow cannot take values."""
    if isinstance(type_, pa.BaseExtensionType):
        return has_views(type_.storage_type)
    is_view = (
        pa.types.is_string_view(type_)
        or pa.types.is_binary_view(type_)
        or pa.types.is_list_view(type_)
        or pa.types.is_large_list_view(type_)
    )
    return is_view or any(has_views(type_.field(i).type) for i in range(type_.num_fields))
