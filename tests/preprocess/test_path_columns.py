"""Columns in the paths of log files: folders NAME=VALUE below the partition folder, as Hive and Spark write them."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.partition_values import WITHOUT_VALUE
from pipeline.errors import UserError
from pipeline.preprocess.discover import LogFile
from pipeline.preprocess.path_columns import columns_in_paths, repeated
from pipeline.table.manifest import Manifest
from tests.preprocess.logs import digests, experiment, read_split
from tests.preprocess.test_labels_and_weights import CLICK, USER, make
from tests.preprocess.test_missing_columns import table_without

SCENE: dict[str, Any] = {"name": "scene", "column": "scene", "values": [0, 1]}
X: dict[str, Any] = {"name": "x", "column": "scene", "kind": "categorical", "ids": {"vocabulary": {}}, "dim": 2}
NULL = WITHOUT_VALUE[1]
ROWS = 3


pytestmark = pytest.mark.usefixtures("without_ray")


def write(folder: Path, path: str, first: int, **columns: Any) -> None:
    """Writes a file of the log; its keys begin with `first`."""
    table = {"row": range(first, first + ROWS), "user": [1, 2, 1], "click": [first % 2, 1, 0], **columns}
    file = folder / "log" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), file)


def two_days(folder: Path, *folders: str, **columns: Any) -> None:
    for day in (1, 2):
        for number, name in enumerate(folders):
            write(folder, f"day={day}/{name}/a.parquet", 100 * day + 10 * number, **columns)


def run(folder: Path, into: str = "table", **sections: Any) -> Manifest:
    return make(folder, into, **{"features": [USER, X], "scenarios": [SCENE], "tasks": [CLICK], **sections})


def values_of(folder: Path, manifest: Manifest, split: str = "train", column: str = "x") -> list[Any]:
    """The values of a feature without its ids."""
    vocabulary = pq.read_table(folder / f"table/encoders/{column}.parquet")["value"].to_pylist()
    return [None if n == 0 else vocabulary[n - 2] for n in read_split(folder / "table", manifest, split)[column]]


def test_the_table_is_that_of_a_log_with_the_column_in_its_files(tmp_path: Path) -> None:
    """A scenario and a feature are in the path alone, as Spark's partitionBy writes them."""
    two_days(tmp_path / "paths", "scene=0", "scene=1")
    for day in (1, 2):
        for scene in (0, 1):
            path = f"day={day}/scene={scene}/a.parquet"
            write(tmp_path / "files", path, 100 * day + 10 * scene, scene=pa.array([scene] * ROWS, pa.int64()))
    made = {name: run(tmp_path / name) for name in ("paths", "files")}
    assert table_without(tmp_path / "paths/table") == table_without(tmp_path / "files/table")
    rows = read_split(tmp_path / "paths/table", made["paths"], "test")
    assert rows["scenario:scene"].tolist() == [0] * ROWS + [1] * ROWS
    assert values_of(tmp_path / "paths", made["paths"]) == [0] * ROWS + [1] * ROWS


# (values in the names of folders, the same as values of a column)
SPELLINGS: list[tuple[list[str], list[Any]]] = [
    (["0", "1"], [0, 1]),
    (["-3", "9223372036854775"], [-3, 9223372036854775]),
    (["0", "a"], ["0", "a"]),
    (["7", "007"], ["7", "007"]),
    (["+7", "7"], ["+7", "7"]),
    (["-0", "0"], ["-0", "0"]),
    (["1.0", "1"], ["1.0", "1"]),
    (["1_0", "10"], ["1_0", "10"]),
    (["\u0661", "1"], ["\u0661", "1"]),
    (["18446744073709551615", "1"], ["18446744073709551615", "1"]),
    (["00%3A30", "12%3A00"], ["00:30", "12:00"]),
    (["a%2Fb", "a b"], ["a/b", "a b"]),
    (["a=b", "%25"], ["a=b", "%"]),
    (["M%C3%BCnchen", "München"], ["München", "München"]),
    (["1", NULL], [1, None]),
    (["a", NULL], ["a", None]),
    (["a", ""], ["a", None]),
    (["true", "null"], ["true", "null"]),
]


@pytest.mark.parametrize(("names", "expected"), SPELLINGS, ids=[" ".join(names) or "empty" for names, _ in SPELLINGS])
def test_every_spelling_of_a_value(tmp_path: Path, names: list[str], expected: list[Any]) -> None:
    two_days(tmp_path, *(f"scene={name}" for name in names))
    other = {"name": "all", "column": "user", "values": [1]}
    manifest = run(tmp_path, scenarios=[other])
    assert values_of(tmp_path, manifest) == [value for value in expected for _ in range(ROWS)]
    assert [partition.quarantined for partition in manifest.partitions] == [0, 0]


NAMES = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=5).filter(
    lambda t: t not in WITHOUT_VALUE
)


@given(st.lists(NAMES | st.integers(-(10**17), 10**17) | st.none(), min_size=1, max_size=5))
def test_values_are_unescaped_and_of_one_kind(values: list[str | int | None]) -> None:
    """As pyarrow reads them, except that only plain spellings are numbers."""
    names = [NULL if value is None else quote(str(value), safe="") for value in values]
    files = [LogFile(f"day=1/x={name}/{n}", [1], pa.schema([])) for n, name in enumerate(names)]
    logs = experiment(Path("unused")).logs
    found = columns_in_paths(logs, files)
    columns = [repeated(found[file.path]["x"], 2).to_pylist() for file in files]
    texts = [None if value is None else str(value) for value in values]
    is_plain = all(text is None or (text.isascii() and _is_number(text)) for text in texts)
    assert columns == [[int(text) if is_plain and text is not None else text] * 2 for text in texts]
    schema = ds.HivePartitioning(pa.schema([("x", pa.string())]))
    for name, text in zip(names, texts, strict=True):
        expected = ds.field("x").is_null() if text is None else ds.field("x") == text
        assert schema.parse(f"x={name}/a").equals(expected)


def _is_number(text: str) -> bool:
    try:
        return str(int(text)) == text
    except ValueError:
        return False


def test_partition_columns_are_columns(tmp_path: Path) -> None:
    two_days(tmp_path, "scene=0", "scene=1")
    day = {**X, "name": "day", "column": "day"}
    manifest = run(tmp_path, features=[USER, day], logs={"keys": ["row", "day", "scene"]})
    rows = read_split(tmp_path / "table", manifest, "test")
    assert rows["key:day"].tolist() == [2] * 2 * ROWS and rows["key:scene"].tolist() == [0] * ROWS + [1] * ROWS
    assert values_of(tmp_path, manifest, column="day") == [1] * 2 * ROWS


def test_a_partition_column_of_a_file_comes_first(tmp_path: Path) -> None:
    two_days(tmp_path, "scene=0", day=["x", "y", "x"])
    manifest = run(tmp_path, features=[USER, {**X, "column": "day"}])
    assert values_of(tmp_path, manifest) == ["x", "y", "x"]
    write(tmp_path, "day=1/b.parquet", 150, scene=[0] * ROWS)
    with pytest.raises(UserError, match="day=1/b.parquet has no column 'day'"):
        run(tmp_path, "other", features=[USER, {**X, "column": "day"}])


@pytest.mark.parametrize("used", [True, False])
def test_a_column_of_a_file_comes_first(tmp_path: Path, used: bool, caplog: pytest.LogCaptureFixture) -> None:
    """As in all earlier versions; whoever meant the other is warned."""
    two_days(tmp_path, "scene=7", "scene=8", scene=[0, 1, 0])
    level = SCENE if used else {"name": "all", "column": "user", "values": [1]}
    manifest = run(tmp_path, features=[USER, X] if used else [USER], scenarios=[level])
    warnings = [r.getMessage() for r in caplog.records if "names of folders" in r.getMessage()]
    assert len(warnings) == used and all("'scene'" in w and "day=1/scene=7/a.parquet" in w for w in warnings)
    if used:
        assert values_of(tmp_path, manifest) == 2 * [0, 1, 0]


def test_a_column_of_a_side_table_comes_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    two_days(tmp_path, "scene=7")
    pq.write_table(pa.table({"user": [1, 2], "scene": [0, 1]}), tmp_path / "side.parquet")
    manifest = run(tmp_path, logs={"joins": [{"path": str(tmp_path / "side.parquet"), "key": "user"}]})
    assert values_of(tmp_path, manifest) == [0, 1, 0]
    assert any("'scene'" in record.getMessage() for record in caplog.records)


def test_a_side_table_is_joined_by_a_path_column(tmp_path: Path) -> None:
    """Its key decides whether the values are numbers or texts."""
    two_days(tmp_path, "scene=0", "scene=1")
    for keys in ([0, 1], ["0", "1"]):
        pq.write_table(pa.table({"scene": keys, "place": ["top", "end"]}), tmp_path / "side.parquet")
        place = {**X, "name": "x", "column": "place"}
        joins = [{"path": str(tmp_path / "side.parquet"), "key": "scene"}]
        level = {**SCENE, "name": "all", "column": "user"}
        run_ = {"features": [USER, place], "scenarios": [level], "logs": {"joins": joins}}
        manifest = make(tmp_path, "table", overwrite=True, tasks=[CLICK], **run_)
        assert values_of(tmp_path, manifest) == ["top"] * ROWS + ["end"] * ROWS


def test_a_file_outside_the_folders_lacks_the_column(tmp_path: Path) -> None:
    two_days(tmp_path, "scene=0")
    write(tmp_path, "day=2/b.parquet", 250)
    with pytest.raises(UserError, match=r"day=2/b.parquet has no column 'scene'.*logs.missing_columns=null"):
        run(tmp_path)
    manifest = run(tmp_path, logs={"missing_columns": None})
    assert [p.missing_columns for p in manifest.partitions] == [{}, {"scene": ROWS}]
    assert [p.quarantined for p in manifest.partitions] == [0, ROWS]


def test_quarantined_rows_have_the_columns_of_the_path(tmp_path: Path) -> None:
    """Also those that no feature uses, but not that of the partition, which is in the path of the quarantine."""
    for day in (1, 2):
        write(tmp_path, f"day={day}/scene=0/a%3Ab=x%20y/a.parquet", 100 * day)
        write(tmp_path, f"day={day}/scene={NULL}/a%3Ab={NULL}/a.parquet", 100 * day + 10, click=[0, 7, 1])
    manifest = run(tmp_path)
    assert manifest.partitions[0].quarantined == ROWS
    (file,) = sorted((tmp_path / "table/quarantine/day=1").rglob("*.parquet"))
    rows = pq.ParquetFile(file).read().to_pydict()
    assert rows["scene"] == rows["a:b"] == [None] * ROWS and rows["row"] == [110, 111, 112] and "day" not in rows
    write(tmp_path, "day=3/scene=1/a%3Ab=x%20y/a.parquet", 300, click=[0, 7, 1])
    splits = {"train": [1, 1], "test": [2, 3]}
    assert run(tmp_path, logs={"splits": splits}).partitions[2].quarantined == 1
    (file,) = sorted((tmp_path / "table/quarantine/day=3").rglob("*.parquet"))
    rows = pq.ParquetFile(file).read().to_pydict()
    assert (rows["scene"], rows["a:b"], rows["file"]) == ([1], ["x y"], ["day=3/scene=1/a%3Ab=x%20y/a.parquet"])


def test_a_column_twice_in_a_path_is_refused_if_it_is_used(tmp_path: Path) -> None:
    two_days(tmp_path, "scene=0/part/scene=1")
    with pytest.raises(UserError, match=r"2 folders scene=VALUE, which .* Rename"):
        run(tmp_path)
    run(tmp_path, features=[USER], scenarios=[{**SCENE, "column": "user"}])


def test_a_wrong_name_is_refused_with_the_nearest(tmp_path: Path) -> None:
    two_days(tmp_path, "Scene=0")
    with pytest.raises(UserError, match="a column 'scene'.*did you mean 'Scene'"):
        run(tmp_path)


def test_a_later_day_continues_the_kind(tmp_path: Path) -> None:
    """A day in which all values are numbers belongs to a log in which some are texts."""
    two_days(tmp_path, "scene=1", "scene=a")
    level = {**SCENE, "values": ["1", "a"]}
    run(tmp_path, scenarios=[level])
    write(tmp_path, "day=3/scene=1/a.parquet", 300)
    splits = {"train": [1, 1], "test": [2, 3]}
    manifest = run(tmp_path, scenarios=[level], logs={"splits": splits})
    rows = read_split(tmp_path / "table", manifest, "test")
    assert rows["scenario:scene"].tolist() == [0] * ROWS + [1] * ROWS + [0] * ROWS
    assert values_of(tmp_path, manifest, "test") == ["1"] * ROWS + ["a"] * ROWS + ["1"] * ROWS


def test_a_later_day_continues_the_kind_of_a_key(tmp_path: Path) -> None:
    two_days(tmp_path, "scene=1", "scene=a")
    logs: dict[str, Any] = {"keys": ["row", "scene"]}
    sections: dict[str, Any] = {"features": [USER], "scenarios": [{**SCENE, "column": "user"}]}
    run(tmp_path, logs=logs, **sections)
    write(tmp_path, "day=3/scene=1/a.parquet", 300)
    manifest = run(tmp_path, logs={**logs, "splits": {"train": [1, 1], "test": [2, 3]}}, **sections)
    assert read_split(tmp_path / "table", manifest, "test")["key:scene"].tolist() == ["1"] * 3 + ["a"] * 3 + ["1"] * 3


@pytest.mark.parametrize("name", ["scene=a", "scene=01"])
def test_a_later_day_with_a_text_is_refused_with_advice_that_holds(tmp_path: Path, name: str) -> None:
    two_days(tmp_path, "scene=0", "scene=1")
    run(tmp_path, features=[USER])
    write(tmp_path, f"day=3/{name}/a.parquet", 300)
    later: dict[str, Any] = {"features": [USER], "logs": {"splits": {"train": [1, 1], "test": [2, 3]}}}
    with pytest.raises(UserError, match=rf"are texts, because of day=3/{name}/a.parquet: .* Rename this folder, or"):
        run(tmp_path, **later)
    texts = {**later, "scenarios": [{**SCENE, "values": ["0", "1"]}]}
    manifest = run(tmp_path, "again", overwrite=True, **texts)
    assert read_split(tmp_path / "again", manifest, "test")["scenario:scene"].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    (tmp_path / f"log/day=3/{name}").rename(tmp_path / "log/day=3/scene=7")
    manifest = run(tmp_path, **later)
    assert read_split(tmp_path / "table", manifest, "test")["scenario:scene"].tolist() == [0] * 3 + [1] * 3 + [2] * 3


def test_a_value_that_is_no_number_is_named_by_its_path(tmp_path: Path) -> None:
    two_days(tmp_path, "scene=1.5")
    price = {"name": "price", "column": "scene", "kind": "numeric", "encode": {"standardize": "identity"}}
    with pytest.raises(UserError, match=r"is large_string in the path of the log file day=1/scene=1\.5/a.parquet"):
        run(tmp_path, features=[USER, price], scenarios=[{**SCENE, "column": "user"}])


def test_nested_partitions_are_columns(tmp_path: Path) -> None:
    for month in (1, 2):
        write(tmp_path, f"year=2026/day={month}/scene=1/a.parquet", 100 * month)
    logs = {"partition": ["year", "day"], "splits": {"train": [[2026, 1], [2026, 1]], "test": [[2026, 2], [2026, 2]]}}
    manifest = run(tmp_path, logs={**logs, "keys": ["row", "year", "day", "scene"]})
    rows = read_split(tmp_path / "table", manifest, "test")
    assert [rows[f"key:{name}"].tolist() for name in ("year", "day", "scene")] == [[2026] * 3, [2] * 3, [1] * 3]


def test_unused_folders_change_nothing(tmp_path: Path) -> None:
    for name, below in (("flat", ""), ("deep", "hour=3/")):
        write(tmp_path / name, f"day=1/{below}a.parquet", 100, scene=[0, 1, 0])
        write(tmp_path / name, f"day=1/{'z' + below}b.parquet", 150, scene=[0, 1, 0])
        write(tmp_path / name, "day=2/a.parquet", 200, scene=[0, 1, 0])
        run(tmp_path / name)
    flat, deep = (digests(tmp_path / name / "table") for name in ("flat", "deep"))
    assert {n for n in flat if flat[n] != deep[n]} <= {"settings.json", "manifest.json"} | {
        name for name in flat if name.startswith(("partitions/", "encoders/encoders.json"))
    }
