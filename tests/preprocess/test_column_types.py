"""Every Arrow type that a Parquet file can have, in every use of a column."""

import datetime
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.features.arrow_types import normal
from pipeline.preprocess.discover import read_files
from pipeline.preprocess.partitions import find_partitions
from pipeline.preprocess.preprocess_plan import PreprocessPlan, make_preprocess_plan
from pipeline.preprocess.rows import judge
from pipeline.preprocess.transform import Transform, encode_rows
from pipeline.preprocess.units import UnitRows, all_columns, cut_units
from tests.preprocess.logs import experiment

DAY = datetime.date(1500, 1, 2)
MOMENT = datetime.datetime(1500, 1, 2, 3, 4, 5)
UUIDS = [bytes(range(16)), bytes(16)]

NUMBER, TEXT, LIST, OTHER = "number", "text", "list", "other"
USES = {
    NUMBER: {"id", "scenario", "join", "number", "label", "key"},
    TEXT: {"id", "scenario", "join", "separated", "key"},
    LIST: {"list", "key"},
    OTHER: {"key"},
}


@dataclass(frozen=True)
class Case:
    """Three values of a type, the last of them null, and what they are."""

    values: pa.Array
    group: str
    ids: list[Any] | None = None  # as ids or lists of ids; None: the values themselves
    kind: str = "int"  # of the ids


def numbers(type_: pa.DataType) -> Case:
    return Case(pa.array([1, 0, None], type_), NUMBER)


def text(type_: pa.DataType, values: list[Any]) -> Case:
    ids = [value if isinstance(value, str) else value.decode() for value in values]
    return Case(pa.array([*values, None], type_), TEXT, [*ids, None], "text")


def lists(type_: pa.DataType, values: list[Any], kind: str) -> Case:
    return Case(pa.array([*values, None], type_), LIST, [*values, None], kind)


def other(type_: pa.DataType, *values: Any) -> Case:
    return Case(pa.array([*values, None], type_), OTHER)


def extended(type_: pa.BaseExtensionType, case: Case) -> Case:
    storage = case.values.cast(type_.storage_type)
    return Case(pa.ExtensionArray.from_storage(type_, storage), case.group, case.ids, case.kind)


INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32()]
SHORT, LONG = "ab", "c" * 40
CASES: dict[str, Case] = {
    **{str(type_): numbers(type_) for type_ in INTEGERS},
    "uint64": Case(pa.array([2**64 - 1, 1, None], pa.uint64()), NUMBER, [-1, 1, None]),
    "bool": Case(pa.array([True, False, None]), NUMBER, [1, 0, None]),
    "float16": Case(
        pa.array(np.array([1, 0], np.float16)).take(pa.array([0, 1, None], pa.int8())), NUMBER, [1, 0, None]
    ),
    "float32": numbers(pa.float32()),
    "float64": numbers(pa.float64()),
    "string": text(pa.string(), [SHORT, LONG]),
    "large_string": text(pa.large_string(), [SHORT, LONG]),
    "string_view": text(pa.string_view(), [SHORT, LONG]),
    "binary": text(pa.binary(), [b"ab", b"c" * 40]),
    "large_binary": text(pa.large_binary(), [b"ab", b"c" * 40]),
    "binary_view": text(pa.binary_view(), [b"ab", b"c" * 40]),
    "fixed_size_binary": text(pa.binary(2), [b"ab", b"cd"]),
    "json": extended(pa.json_(), text(pa.string(), ["{}", "1"])),
    "uuid": extended(pa.uuid(), text(pa.binary(16), UUIDS)),
    "bool8": extended(pa.bool8(), Case(pa.array([1, 0, None], pa.int8()), NUMBER, [1, 0, None])),
    "dictionary of texts": Case(pa.array([SHORT, LONG, None]).dictionary_encode(), TEXT, [SHORT, LONG, None], "text"),
    "dictionary of bytes": Case(pa.array([b"ab", b"c", None]).dictionary_encode(), TEXT, ["ab", "c", None], "text"),
    "dictionary with small codes": Case(
        pa.array([SHORT, LONG, None]).dictionary_encode().cast(pa.dictionary(pa.uint8(), pa.string())),
        TEXT,
        [SHORT, LONG, None],
        "text",
    ),
    "dictionary of numbers": Case(pa.array([7, 1, None]).dictionary_encode(), NUMBER, [7, 1, None]),
    "list": lists(pa.list_(pa.int16()), [[1, 2], []], "int"),
    "large_list": lists(pa.large_list(pa.large_string()), [[SHORT, LONG], []], "text"),
    "list_view": lists(pa.list_view(pa.string_view()), [[SHORT, LONG], []], "text"),
    "large_list_view": lists(pa.large_list_view(pa.int64()), [[1, 2], []], "int"),
    "fixed_size_list": lists(pa.list_(pa.int8(), 2), [[1, 2], [3, 4]], "int"),
    "list of bytes": Case(pa.array([[b"a"], [], None], pa.list_(pa.binary())), LIST, [["a"], [], None], "text"),
    "list of booleans": Case(pa.array([[True], [], None]), LIST, [[1], [], None]),
    "list of dictionary": Case(
        pa.ListArray.from_arrays(
            [0, 2, 2, 2], pa.array(["a", "b"]).dictionary_encode(), mask=pa.array([False, False, True])
        ),
        LIST,
        [["a", "b"], [], None],
        "text",
    ),
    "fixed_shape_tensor": extended(
        pa.fixed_shape_tensor(pa.int8(), [2]), lists(pa.list_(pa.int8(), 2), [[1, 2], [3, 4]], "int")
    ),
    "list of floats": other(pa.list_(pa.float64()), [1.0], []),
    "list of lists": other(pa.list_(pa.list_(pa.int64())), [[1]], []),
    "list of structs": other(pa.list_(pa.struct({"a": pa.int8()})), [{"a": 1}], []),
    "list of times": other(pa.list_(pa.timestamp("us")), [MOMENT], []),
    "struct": other(pa.struct({"a": pa.int8(), "b": pa.string_view()}), {"a": 1, "b": "x"}, {"a": None, "b": None}),
    "map": other(pa.map_(pa.string(), pa.int8()), [("a", 1)], []),
    "date32": other(pa.date32(), DAY, DAY),
    "date64": other(pa.date64(), DAY, DAY),
    "time32": other(pa.time32("ms"), datetime.time(1), datetime.time(2)),
    "time64": other(pa.time64("us"), datetime.time(1), datetime.time(2)),
    "timestamp": other(pa.timestamp("us"), MOMENT, MOMENT),
    "timestamp with zone": other(pa.timestamp("ms", "UTC"), MOMENT, MOMENT),
    "duration": other(pa.duration("s"), datetime.timedelta(1), datetime.timedelta(2)),
    **{
        f"decimal{bits}": other(type_, Decimal("1.25"), Decimal(0))
        for bits, type_ in (
            (32, pa.decimal32(5, 2)),
            (64, pa.decimal64(12, 2)),
            (128, pa.decimal128(20, 2)),
            (256, pa.decimal256(50, 2)),
        )
    },
}
NULLS = {
    "null": pa.null(),
    "list of nulls": pa.list_(pa.null()),
    "dictionary of nulls": pa.dictionary(pa.int8(), pa.null()),
}
NOT_IN_PARQUET = {
    "Type_INTERVAL_DAY_TIME",
    "Type_INTERVAL_MONTHS",
    "Type_INTERVAL_MONTH_DAY_NANO",
    "Type_SPARSE_UNION",
    "Type_DENSE_UNION",
    "Type_RUN_END_ENCODED",
}
ACCEPTS = {
    "id": "whole numbers, texts or booleans",
    "scenario": "whole numbers, texts or booleans",
    "join": "whole numbers, texts or booleans",
    "number": "an integer, a float or a boolean",
    "label": "an integer, a float or a boolean",
    "list": "lists of whole numbers or texts",
    "separated": "text to be split at the separator",
}
EACH_USE = pytest.mark.parametrize("use", [*ACCEPTS, "key"])


def test_every_type_of_arrow_is_here() -> None:
    """A type that a newer Arrow adds makes this test fail."""
    ids = {value: name for name, value in vars(pa.lib).items() if name.startswith("Type_")}
    types = [case.values.type for case in CASES.values()] + list(NULLS.values())
    here = {ids[type_.id] for type_ in types if not isinstance(type_, pa.BaseExtensionType)}
    assert here | NOT_IN_PARQUET == set(ids.values())


def plan_of(folder: Path, use: str, values: pa.Array, kind: str = "int") -> tuple[PreprocessPlan, UnitRows]:
    """The plan and the rows of a log with a column `x` of these values, which the experiment uses."""
    rows = len(values)
    log = pa.table({"row": range(rows), "tab": [0] * rows, "click": [0] * rows, "x": values})
    path = folder / "log/day=1/a.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(log, path)
    number = {"name": "x", "column": "x", "kind": "numeric", "encode": {"standardize": "identity"}}
    ids = {"name": "x", "column": "x", "ids": {"hash": 7}, "dim": 2}
    features: dict[str, dict[str, Any]] = {
        "number": number,
        "id": {**ids, "kind": "categorical"},
        "list": {**ids, "kind": "sequence", "max_length": 9},
        "separated": {**ids, "kind": "multivalued", "separator": ","},
        "join": {**ids, "column": "side", "kind": "categorical"},
    }
    click = {"name": "click", "column": "click", "kind": "binary"}
    tab: dict[str, Any] = {"name": "tab", "column": "tab", "values": [1]}
    side = folder / "side.parquet"
    pq.write_table(
        pa.table({"x": pa.array([], pa.int64() if kind == "int" else pa.string()), "side": pa.array([], pa.string())}),
        side,
    )
    sections = experiment(
        folder,
        logs={
            "splits": {"train": [1, 1]},
            "joins": [{"path": str(side), "key": "x"}] if use == "join" else [],
            "keys": ["row", "x"] if use == "key" else ["row"],
        },
        features=[features.get(use, {**ids, "column": "row", "kind": "categorical"})],
        scenarios=[{**tab, "column": "x", "values": [1 if kind == "int" else "ab"]} if use == "scenario" else tab],
        tasks=[click, {"name": "x", "column": "x", "kind": "continuous"}] if use == "label" else [click],
    ).table_experiment
    (found,) = read_files(sections.logs, find_partitions(sections.logs).partitions)
    plan = make_preprocess_plan(sections, str(folder / "table"), found.files)
    return plan, UnitRows(plan, cut_units(found)[0], all_columns(plan))


class Remembering:
    """An encoder that keeps what it is given."""

    def __init__(self) -> None:
        self.seen = pa.nulls(0)

    @property
    def rows(self) -> int:
        return 1

    def encode(self, values: pa.Array) -> Any:
        self.seen = values
        return np.zeros(len(values), np.int32)


@EACH_USE
@pytest.mark.parametrize("name", CASES)
def test_each_type_is_read_or_refused_in_one_sentence(tmp_path: Path, use: str, name: str) -> None:
    case = CASES[name]
    if use not in USES[case.group]:
        expected = rf"^The column 'x', which .* uses, is .* in the log file day=1/a.parquet; expected {ACCEPTS[use]}"
        with pytest.raises(UserError, match=expected) as error:
            plan_of(tmp_path, use, case.values, case.kind)
        assert "\n" not in str(error.value)
        return
    plan, rows = plan_of(tmp_path, use, case.values, case.kind)
    verdict = judge(plan.sections, plan.sources, rows)
    assert verdict.kept.tolist() == ([0, 1] if use in ("label", "scenario", "key") else [0, 1, 2])
    encoder = Remembering()
    table, _ = encode_rows(Transform(plan, {"x": encoder}), rows, verdict.kept)
    ids = case.values.to_pylist() if case.ids is None else case.ids
    match use:
        case "id":
            assert dict.fromkeys(encoder.seen.to_pylist()) == dict.fromkeys(ids)
        case "list":
            assert encoder.seen.to_pylist() == [item for row in ids if row is not None for item in row]
        case "separated":
            assert encoder.seen.to_pylist() == [part.strip() for row in ids[:2] for part in row.split(",")]
        case "number":
            np.testing.assert_array_equal(encoder.seen.cast(pa.float64(), safe=False).to_pylist(), case_numbers(case))
        case "label":
            assert table["label:x"].to_pylist() == pytest.approx(case_numbers(case)[:2])
        case "scenario":
            assert table["scenario:tab"].to_pylist() == [0 if value in (1, "ab") else 1 for value in ids[:2]]
        case "key":
            kept = pa.table({"x": case.values})["x"].slice(0, 2)
            assert normal(table["key:x"]).to_pylist() == normal(kept).to_pylist()
            pq.write_table(table, tmp_path / "lane.parquet")


def case_numbers(case: Case) -> list[Any]:
    return [None if value is None else float(value) for value in case.values.to_pylist()]


@EACH_USE
@pytest.mark.parametrize("name", NULLS)
def test_a_column_without_a_value_fits_every_use(tmp_path: Path, use: str, name: str) -> None:
    if name == "list of nulls" and use not in ("list", "key"):
        return  # lists, though of nothing
    values = pa.nulls(2, NULLS[name]) if name != "list of nulls" else pa.array([[None], []], NULLS[name])
    plan, rows = plan_of(tmp_path, use, values)
    assert plan.sources.undecided == ({"x"} if use in ("id", "list", "separated") else set())
    verdict = judge(plan.sections, plan.sources, rows)
    encode_rows(Transform(plan, {"x": Remembering()}), rows, verdict.kept)


def test_long_keys_are_converted_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, rows = plan_of(tmp_path, "key", pa.array(["a" * 9, "b" * 9, "c" * 9]))
    order = np.array([2, 0, 1])
    whole, _ = encode_rows(Transform(plan, {"x": Remembering()}), rows, order)
    monkeypatch.setattr("pipeline.preprocess.transform.KEY_BYTES", 30)
    parts, _ = encode_rows(Transform(plan, {"x": Remembering()}), rows, order)
    assert whole["key:x"].num_chunks == 1 and parts["key:x"].num_chunks == 2
    assert parts.equals(whole)


def side_rows(folder: Path, side: pa.Table, key: pa.Array, feature: dict[str, Any]) -> UnitRows:
    """The rows of a log that is joined to a side table by the column `k`."""
    rows = len(key)
    path = folder / "log/day=1/a.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"row": range(rows), "tab": [0] * rows, "click": [0] * rows, "k": key}), path)
    pq.write_table(side, folder / "side.parquet")
    sections = experiment(
        folder,
        logs={"splits": {"train": [1, 1]}, "joins": [{"path": str(folder / "side.parquet"), "key": "k"}]},
        features=[feature],
        tasks=[{"name": "click", "column": "click", "kind": "binary"}],
    ).table_experiment
    (found,) = read_files(sections.logs, find_partitions(sections.logs).partitions)
    plan = make_preprocess_plan(sections, str(folder / "table"), found.files)
    return UnitRows(plan, cut_units(found)[0], all_columns(plan))


FEATURES: dict[str, dict[str, Any]] = {
    NUMBER: {"kind": "categorical"},
    TEXT: {"kind": "categorical"},
    LIST: {"kind": "multivalued"},
}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.group in FEATURES])
def test_columns_of_side_tables_have_the_same_types(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    feature = {"name": "x", "column": "x", "ids": {"hash": 7}, "dim": 2, **FEATURES[case.group]}
    side = pa.table({"k": [5, 6, 7], "x": case.values})
    column = side_rows(tmp_path, side, pa.array([7, 5, 8, 6]), feature).column("x")
    expected = normal(pa.chunked_array([case.values])).to_pylist()
    found = column.values.take(pa.array(column.rows)).to_pylist()
    assert found == [expected[2], expected[0], None, expected[1]]


@pytest.mark.parametrize("name", CASES)
def test_keys_of_side_tables_have_the_same_types(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    side = pa.table({"k": case.values, "x": [5, 6, 7]})
    feature = {"name": "x", "column": "x", "kind": "categorical", "ids": {"hash": 7}, "dim": 2}
    key = pa.array([*case.ids[1::-1], None] if case.ids else [0, 1, None])
    if case.group not in (NUMBER, TEXT):
        with pytest.raises(
            UserError, match=r"logs.joins.0.key: the column 'k' of .* is .*; a key must be whole numbers or"
        ):
            side_rows(tmp_path, side, key, feature)
        return
    column = side_rows(tmp_path, side, key, feature).column("x")
    assert column.values.take(pa.array(column.rows)).to_pylist() == [6, 5, None]
