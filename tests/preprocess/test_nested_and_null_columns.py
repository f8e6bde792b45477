"""Fields of structs, times of the type INT96, and columns that have only nulls at first."""

import datetime
import logging
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.preprocess.discover import read_files
from pipeline.preprocess.job import preprocess
from pipeline.preprocess.named_columns import named_columns
from pipeline.preprocess.partitions import find_partitions
from pipeline.preprocess.preprocess_plan import make_preprocess_plan
from pipeline.preprocess.units import UnitRows, all_columns, cut_units
from pipeline.table.encoder_index import read_index
from pipeline.table.manifest import Manifest, Partition
from tests.preprocess.logs import digests, experiment

IDS: dict[str, Any] = {"ids": {"vocabulary": {}}, "dim": 2}
X: dict[str, Any] = {"name": "x", "column": "x", "kind": "categorical", **IDS}
ROW: dict[str, Any] = {"name": "row", "column": "row", "kind": "categorical", "ids": {"hash": 9}, "dim": 2}


def write(folder: Path, day: int, first: int = 0, **columns: Any) -> None:
    rows = max((len(values) for values in columns.values()), default=3)
    numbers = list(range(first, first + rows))
    log = {"row": numbers, "tab": [0] * rows, "click": [n % 2 for n in numbers], **columns}
    path = folder / f"log/day={day}/a.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(log), path)


def run(folder: Path, last: int = 2, overwrite: bool = False, **sections: Any) -> Manifest:
    logs = {
        "joins": [],
        "splits": {"train": [1, 1], "test": [2, last]},
        "max_quarantined": 1.0,
        **sections.pop("logs", {}),
    }
    given: dict[str, Any] = {
        "features": [X],
        "tasks": [{"name": "click", "column": "click", "kind": "binary"}],
        "scenarios": [{"name": "tab", "column": "tab", "values": [0]}],
        **sections,
    }
    return preprocess(experiment(folder, logs=logs, **given), str(folder / "table"), overwrite)


def lanes(folder: Path, partition: Partition) -> dict[str, list[Any]]:
    files = [folder / "table" / file.path for lane in partition.lanes for file in lane]
    return dict(pa.concat_tables([pq.ParquetFile(path).read() for path in files]).sort_by("key:row").to_pydict())


def vocabulary(folder: Path, generation: str = "") -> list[Any]:
    return list(pq.read_table(folder / f"table/encoders{generation}/x.parquet")["value"].to_pylist())


# Fields of structs

DEVICE = pa.array(
    [{"os": "a", "screen": {"width": 5, "tall": True}, "big": "z"}, None, {"os": None, "screen": None, "big": "z"}]
)
ITEMS = pa.array([[{"id": 1, "at": 5}, {"id": 2, "at": 6}], None, []])


def rows_of(folder: Path, columns: list[str], **sections: Any) -> UnitRows:
    features = [{**X, "name": f"x{i}", "column": column} for i, column in enumerate(columns)]
    given: dict[str, Any] = {"features": features, "tasks": [{"name": "click", "column": "click", "kind": "binary"}]}
    sections = {"logs": {"joins": [], "splits": {"train": [1, 1]}}, **given, **sections}
    plan_sections = experiment(folder, **sections).table_experiment
    (found,) = read_files(plan_sections.logs, find_partitions(plan_sections.logs).partitions)
    plan = make_preprocess_plan(plan_sections, str(folder / "table"), found.files)
    return UnitRows(plan, cut_units(found)[0], all_columns(plan))


def values(rows: UnitRows, name: str) -> list[Any]:
    column = rows.column(name)
    return list(column.values.take(pa.array(column.rows)).to_pylist())


def test_fields_of_structs_are_columns(tmp_path: Path) -> None:
    write(tmp_path, 1, device=DEVICE)
    rows = rows_of(tmp_path, ["device.os", "device.screen.width", "device.screen.tall"])
    assert values(rows, "device.os") == ["a", None, None]
    assert values(rows, "device.screen.width") == [5, None, None]
    assert values(rows, "device.screen.tall") == [True, None, None]


def test_a_column_whose_name_has_dots_comes_first(tmp_path: Path) -> None:
    write(tmp_path, 1, **{"device": DEVICE, "device.os": [7, 8, 9], "device.screen.wide": ["n", "n", "n"]})
    rows = rows_of(tmp_path, ["device.os", "device.screen.width", "device.screen.wide"])
    assert values(rows, "device.os") == [7, 8, 9]
    assert values(rows, "device.screen.width") == [5, None, None]
    assert values(rows, "device.screen.wide") == ["n", "n", "n"]


def test_a_field_of_a_list_of_structs_is_a_list(tmp_path: Path) -> None:
    write(tmp_path, 1, items=ITEMS)
    sequence = {**X, "column": "items.id", "kind": "sequence", "max_length": 5}
    assert values(rows_of(tmp_path, [], features=[sequence]), "items.id") == [[1, 2], None, []]


def test_fields_may_be_labels_scenarios_keys_and_join_keys(tmp_path: Path) -> None:
    facts = pa.array([{"tab": n, "click": n % 2, "item": f"i{n}", "key": 10 + n} for n in range(3)])
    write(tmp_path, 1, facts=facts)
    side = pa.array([{"brand": "b1"}, {"brand": "b2"}])
    pq.write_table(pa.table({"facts.item": ["i1", "i2"], "more": side}), tmp_path / "side.parquet")
    rows = rows_of(
        tmp_path,
        ["more.brand"],
        logs={
            "splits": {"train": [1, 1]},
            "joins": [{"path": str(tmp_path / "side.parquet"), "key": "facts.item"}],
            "keys": ["facts.key"],
        },
        scenarios=[{"name": "tab", "column": "facts.tab", "values": [0]}],
        tasks=[{"name": "click", "column": "facts.click", "kind": "binary"}],
    )
    assert values(rows, "more.brand") == [None, "b1", "b2"]
    assert [values(rows, f"facts.{name}") for name in ("tab", "click", "key")] == [[0, 1, 2], [0, 1, 0], [10, 11, 12]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("device.oss", "did you mean 'device.os'"),
        (
            "device",
            r"is struct<.*; expected whole numbers, texts or booleans. Use one of its fields, such as 'device.os'",
        ),
        ("items", r"is list<.*struct<.*; expected whole numbers.* Use one of its fields, such as 'items.id'"),
        ("items.id", r"is list<.*int64>.*; expected whole numbers"),
        ("device.os.x", "does not have a column 'device.os.x'"),
    ],
)
def test_other_names_are_refused(tmp_path: Path, name: str, message: str) -> None:
    write(tmp_path, 1, device=DEVICE, items=ITEMS)
    with pytest.raises(UserError, match=message):
        rows_of(tmp_path, [name])


def test_only_the_leaf_is_read(tmp_path: Path) -> None:
    """The data of the other leaves of the struct are overwritten: reading any of them would fail."""
    write(tmp_path, 1, device=DEVICE, items=ITEMS)
    path = tmp_path / "log/day=1/a.parquet"
    data = bytearray(path.read_bytes())
    metadata = pq.read_metadata(path)
    wanted = ["device.os", "items.id"]
    kept = [
        leaf
        for c in named_columns(pq.read_schema(path))
        if c.name in [*wanted, "row", "tab", "click"]
        for leaf in c.leaves
    ]
    for leaf in set(range(metadata.num_columns)) - set(kept):
        chunk = metadata.row_group(0).column(leaf)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(data)
    sequence = {**X, "column": "items.id", "kind": "sequence", "max_length": 5}
    rows = rows_of(tmp_path, [], features=[{**X, "name": "os", "column": "device.os"}, sequence])
    assert values(rows, "device.os") == ["a", None, None]
    assert values(rows, "items.id") == [[1, 2], None, []]


# INT96

DAYS = [
    datetime.datetime(1500, 1, 2, 3),
    datetime.datetime(9999, 12, 31),
    datetime.datetime(2024, 1, 1, 0, 0, 0, 123456),
]


@pytest.mark.usefixtures("ray_is_up")
@pytest.mark.parametrize("store_schema", [True, False])
def test_times_as_int96_keep_their_day_in_keys_and_quarantine(tmp_path: Path, store_schema: bool) -> None:
    for day in (1, 2):
        log = pa.table(
            {
                "row": [0, 1, 2, 3],
                "tab": [0] * 4,
                "click": [0, 1, 0, None],
                "at": pa.array([*DAYS, DAYS[0]], pa.timestamp("us")),
            }
        )
        path = tmp_path / f"log/day={day}/a.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(log, path, use_deprecated_int96_timestamps=True, store_schema=store_schema)
        assert "int96" in str(pq.read_metadata(path).schema)
    manifest = run(tmp_path, logs={"keys": ["row", "at"]}, features=[ROW])
    (train,) = manifest.split("train")
    assert lanes(tmp_path, train)["key:at"] == DAYS
    bad = pq.read_table(tmp_path / "table/quarantine/day=1/unit-00000.parquet", partitioning=None)
    assert bad["at"].to_pylist() == [DAYS[0]]


# Columns that have only nulls at first

NOTHING = {
    "type null": pa.nulls(3),
    "numbers without a value": pa.nulls(3, pa.float64()),
    "dictionary without a value": pa.nulls(3, pa.dictionary(pa.int8(), pa.string())),
}
TEXTS = ["b", "a", "b"]


@pytest.mark.usefixtures("ray_is_up")
@pytest.mark.parametrize("name", NOTHING)
@pytest.mark.parametrize("encoders", ["fixed", "extend"])
@pytest.mark.parametrize("ids", [{"vocabulary": {"min_count": 3}}, {"hash": 100}])
def test_a_column_has_no_kind_until_it_has_a_value(
    tmp_path: Path, name: str, encoders: str, ids: dict[str, Any]
) -> None:
    same = {"name": "same", "column": "x", "kind": "categorical", "shares": "x"}
    sections: dict[str, Any] = {"features": [{**X, "ids": ids}, same], "table": {"lanes": 4, "encoders": encoders}}
    for day in (1, 2):
        write(tmp_path, day, first=10 * day, x=NOTHING[name])
    run(tmp_path, **sections, logs={"splits": {"test": [1, 1], "train": [2, 2]}})
    write(tmp_path, 3, first=30, x=TEXTS)
    splits = {"test": [1, 1], **({"train": [2, 3]} if encoders == "extend" else {"train": [2, 2], "valid": [3, 3]})}
    manifest = run(tmp_path, **sections, logs={"splits": splits})
    found = lanes(tmp_path, partition_of(manifest, "3"))
    assert found["x"] == found["same"]
    if "hash" in ids:
        assert found["x"][0] == found["x"][2] != found["x"][1] and min(found["x"]) >= 2
    elif encoders == "extend":
        assert found["x"] == [2, 1, 2] and vocabulary(tmp_path, "/generation-00002") == ["b"]
    else:
        assert found["x"] == [1, 1, 1]
    index = read_index(str(tmp_path / "table"))
    assert index is not None and index.encoders["x"].values == "text"
    # From now on the column has texts.
    splits["valid"] = [splits.get("valid", [4])[0], 4]
    write(tmp_path, 4, first=40, x=[5, 5, 5])
    with pytest.raises(UserError, match="'x': the new partitions have ids of kind int, but .* was fitted on text"):
        run(tmp_path, **sections, logs={"splits": splits})
    write(tmp_path, 4, first=40, x=pa.nulls(3))
    manifest = run(tmp_path, **sections, logs={"splits": splits})
    assert lanes(tmp_path, partition_of(manifest, "4"))["x"] == [0, 0, 0]


@pytest.mark.usefixtures("ray_is_up")
@pytest.mark.parametrize("advice", ["overwrite", "extend"])
def test_first_values_of_fixed_encoders_are_reported_with_what_to_do(
    tmp_path: Path, advice: str, caplog: pytest.LogCaptureFixture
) -> None:
    for day in (1, 2):
        write(tmp_path, day, first=10 * day, x=pa.nulls(3))
    run(tmp_path)
    for day in (3, 4):
        write(tmp_path, day, first=10 * day, x=TEXTS)
    splits = {"test": [2, 2], "valid": [1, 1], "train": [3, 3]}
    with caplog.at_level(logging.WARNING):
        run(tmp_path, logs={"splits": splits})
    assert "feature 'x' has its first values in the new partitions" in caplog.text
    if advice == "overwrite":
        run(tmp_path, logs={"splits": splits}, overwrite=True)
        assert vocabulary(tmp_path) == ["b", "a"]
        return
    run(tmp_path, logs={"splits": {**splits, "train": [3, 4]}}, table={"lanes": 4, "encoders": "extend"})
    assert vocabulary(tmp_path, "/generation-00002") == ["b", "a"]


def partition_of(manifest: Manifest, value: str) -> Partition:
    (partition,) = [partition for partition in manifest.partitions if partition.value == value]
    return partition


@pytest.mark.usefixtures("ray_is_up")
def test_a_null_column_takes_the_kind_of_the_table_that_it_shares_and_of_scenario_values(tmp_path: Path) -> None:
    for day in (1, 2):
        write(tmp_path, day, first=10 * day, x=TEXTS, tab=["a", "b", "a"], y=pa.nulls(3), z=pa.nulls(3))
    write(tmp_path, 3, first=30, x=TEXTS, tab=pa.nulls(3), y=pa.nulls(3), z=pa.nulls(3))
    features = [
        X,
        {"name": "y", "column": "y", "kind": "categorical", "shares": "x"},
        {"name": "z", "column": "z", "kind": "sequence", "shares": "x", "max_length": 2},
    ]
    sections: dict[str, Any] = {"features": features, "scenarios": [{"name": "tab", "column": "tab", "values": ["a"]}]}
    manifest = run(tmp_path, **sections)
    found = lanes(tmp_path, partition_of(manifest, "1"))
    assert found["y"] == [0, 0, 0] and found["z"] == [[], [], []]
    manifest = run(tmp_path, **sections, last=3)  # the new day alone has no scenario that would show its kind
    reason = "scenario tab: value is missing or not a whole number"
    assert partition_of(manifest, "3").reasons == {reason: 3}


@pytest.mark.usefixtures("ray_is_up")
def test_a_key_that_had_only_nulls_may_have_any_type_later(tmp_path: Path) -> None:
    for day in (1, 2):
        write(tmp_path, day, first=10 * day, x=TEXTS, session=pa.nulls(3))
    sections: dict[str, Any] = {"logs": {"keys": ["row", "session"]}}
    with pytest.raises(UserError, match="no row is left of its 3 rows"):
        run(tmp_path, **sections)
    for day in (1, 2):
        (next((tmp_path / "table/partitions").glob(f"*-{day}.json"))).unlink()
        write(tmp_path, day, first=10 * day, x=TEXTS, session=["s1", "s2", "s3"])
    manifest = run(tmp_path, **sections)
    assert lanes(tmp_path, partition_of(manifest, "1"))["key:session"] == ["s1", "s2", "s3"]


# Keys of a table that is continued

SPELLINGS = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int8(), pa.string())]


@pytest.mark.usefixtures("ray_is_up")
@pytest.mark.parametrize("first", [pa.string(), pa.large_string(), pa.string_view()])
def test_keys_of_texts_continue_in_every_spelling(tmp_path: Path, first: pa.DataType) -> None:
    sections: dict[str, Any] = {"logs": {"keys": ["row", "session"]}, "features": [ROW]}
    for day in (1, 2):
        write(tmp_path, day, first=10 * day, session=pa.array(["s1", "s2", "s3"], first))
    before = run(tmp_path, **sections).columns
    for day, spelling in enumerate(SPELLINGS, start=3):
        write(tmp_path, day, first=10 * day, session=pa.array(["a", "b", "c"], spelling))
    manifest = run(tmp_path, **sections, last=9)
    assert manifest.columns == before
    for day in range(3, 8):
        assert lanes(tmp_path, partition_of(manifest, str(day)))["key:session"] == ["a", "b", "c"]


@pytest.mark.usefixtures("ray_is_up")
def test_keys_in_nanoseconds_continue_with_int96_as_far_as_they_reach(tmp_path: Path) -> None:
    sections: dict[str, Any] = {"logs": {"keys": ["row", "at"]}, "features": [ROW]}
    for day in (1, 2):
        write(tmp_path, day, first=10 * day, at=pa.array([DAYS[2]], pa.timestamp("ns")))
    run(tmp_path, **sections)
    for day, moment in ((3, DAYS[2]), (4, DAYS[0])):
        path = tmp_path / f"log/day={day}/a.parquet"
        path.parent.mkdir()
        log = pa.table({"row": [day], "tab": [0], "click": [0], "at": pa.array([moment], pa.timestamp("us"))})
        pq.write_table(log, path, use_deprecated_int96_timestamps=True)
    manifest = run(tmp_path, **sections, last=3)
    assert lanes(tmp_path, partition_of(manifest, "3"))["key:at"] == [DAYS[2]]
    with pytest.raises(UserError, match=r"The key 'at' is timestamp\[us\] in the log file .*, but timestamp\[ns\]"):
        run(tmp_path, **sections, last=4)


@pytest.mark.usefixtures("ray_is_up")
def test_bytes_give_the_same_table_as_texts(tmp_path: Path) -> None:
    made = []
    for spelling in SPELLINGS:
        for day in (1, 2):
            texts = pa.array(["é", None, "a", "c" * 20, "a"], spelling)
            split = pa.array(
                ["a, é", None, "", "b,b", "c"], pa.large_string() if spelling == SPELLINGS[-1] else spelling
            )
            lists = pa.array([["é"], None, [], ["b", "a"], ["a"]], pa.list_(pa.string())).cast(pa.list_(split.type))
            write(tmp_path, day, first=10 * day, x=texts, words=split, lists=lists)
        features = [
            X,
            {"name": "hashed", "column": "x", "kind": "categorical", "ids": {"hash": 50}, "dim": 2},
            {"name": "words", "column": "words", "kind": "multivalued", "separator": ",", **IDS},
            {"name": "lists", "column": "lists", "kind": "sequence", "max_length": 2, **IDS},
        ]
        run(tmp_path, features=features, scenarios=[{"name": "tab", "column": "x", "values": ["a"]}])
        files = digests(tmp_path / "table")
        made.append({name: value for name, value in files.items() if "lane-" in name or name.startswith("encoders/")})
        shutil.rmtree(tmp_path / "table")
    made = [{name: digest for name, digest in files.items() if name != "encoders/encoders.json"} for files in made]
    assert made[0] and made == made[:1] * len(made)
