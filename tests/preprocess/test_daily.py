"""Daily operation: extended vocabularies, days that move to other splits, late files, growing experiments."""

import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.experiment import Experiment
from pipeline.errors import UserError
from pipeline.features import vocabulary
from pipeline.features.vocabulary import VocabularyConfig
from pipeline.preprocess import units
from pipeline.preprocess.job import preprocess
from pipeline.table.manifest import Manifest, read_manifest
from pipeline.table.settings import check_table_is_of
from tests.preprocess.logs import digests, experiment, read_split, write_file

pytestmark = pytest.mark.usefixtures("ray_is_up")

SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "user": pa.int64(),
        "item": pa.string(),
        "seen": pa.list_(pa.string()),
        "price": pa.float64(),
        "tab": pa.int8(),
        "click": pa.int8(),
        "buy": pa.int8(),
    }
)
FEATURES: list[dict[str, Any]] = [
    {"name": "user", "column": "user", "kind": "categorical", "ids": {"vocabulary": {"min_count": 5}}, "dim": 4},
    {
        "name": "item",
        "column": "item",
        "kind": "categorical",
        "ids": {"vocabulary": {"min_count": 2, "max_size": 4}},
        "dim": 4,
    },
    {"name": "seen", "column": "seen", "kind": "sequence", "shares": "item", "max_length": 5},
    {"name": "hashed", "column": "item", "kind": "categorical", "ids": {"hash": 5}, "dim": 4},
    {"name": "price", "column": "price", "kind": "numeric", "encode": {"quantiles": 3}, "dim": 2},
    {"name": "spent", "column": "price", "kind": "numeric", "encode": {"standardize": "log1p"}},
]
TASKS = [{"name": "click", "column": "click", "kind": "binary"}]
BUY = {"name": "buy", "column": "buy", "kind": "binary"}

# The values of each day. Users get an id when seen 5 times, items when seen twice (at most 4 items, also from `seen`).
DAYS: dict[int, tuple[list[int], list[str], list[str]]] = {
    1: ([7] * 6 + [8] * 2, ["a"] * 3 + ["b"], ["b", "c"]),
    2: ([8] * 2 + [9] * 5 + [7], ["d"] * 2, ["c", "e"]),
    3: ([8] + [6] * 6 + [5] * 6, ["f"] * 9, ["e"]),
    4: ([4] * 5, ["a"], []),
}


def write_day(folder: Path, day: int, part: int = 0) -> None:
    """Writes a file of a day with every value of DAYS as often as listed, one value per row."""
    users, items, seen = DAYS[day]
    rows = max(len(users), len(items), len(seen))

    def filled(values: list[Any]) -> list[Any]:
        return values + [None] * (rows - len(values))

    columns: dict[str, list[Any]] = {
        "row": [1000 * day + 100 * part + i for i in range(rows)],
        "user": filled(list(users)),
        "item": filled(list(items)),
        "seen": filled([[item] for item in seen]),
        "price": [float(i) for i in range(rows)],
        "tab": [i % 4 for i in range(rows)],
        "click": [i % 2 for i in range(rows)],
        "buy": [int(i % 3 == 0) for i in range(rows)],
    }
    write_file(folder / f"log/day={day}/part-{part}.parquet", columns, SCHEMA, group_rows=4)


def daily(folder: Path, encoders: str = "extend", **sections: Any) -> Experiment:
    """An experiment over the days above; by default all days are in the train split."""
    logs: dict[str, Any] = {"joins": [], "splits": sections.pop("splits", {"train": [1, 9]})}
    table = {"lanes": 2, "encoders": encoders, **sections.pop("table", {})}
    sections = {"features": FEATURES, "tasks": TASKS, **sections}
    return experiment(folder, logs=logs, table=table, training={"global_batch_size": 2}, **sections)


def make(folder: Path, **sections: Any) -> Manifest:
    return preprocess(daily(folder, **sections), str(folder / "table"))


def vocabularies(table: Path) -> dict[str, dict[Any, tuple[int, int]]]:
    """Value -> (id, count) of each vocabulary, as committed."""
    index = json.loads((table / "encoders/encoders.json").read_text())
    folder = table / "encoders"
    if index["generation"] > 1:
        folder /= f"generation-{index['generation']:05d}"
    read = {name: pq.read_table(folder / f"{name}.parquet").to_pylist() for name in ("user", "item")}
    return {name: {row["value"]: (row["id"], row["count"]) for row in rows} for name, rows in read.items()}


@settings(max_examples=40, deadline=None)
@given(
    days=st.lists(st.dictionaries(st.integers(0, 12), st.integers(1, 4)), min_size=1, max_size=5),
    min_count=st.integers(1, 8),
    max_size=st.none() | st.integers(1, 8),
    ranges=st.lists(st.integers(1, 3), min_size=5, max_size=5),
)
def test_a_value_gets_its_id_on_the_day_when_it_reaches_min_count(
    days: list[dict[int, int]], min_count: int, max_size: int | None, ranges: list[int]
) -> None:
    """For any number of ranges per day, the result is the same as counting all days in one dictionary."""
    limits = VocabularyConfig(min_count=min_count, max_size=max_size)
    known, totals, expected = vocabulary.empty_vocabulary("int"), Counter[int](), list[int]()
    with tempfile.TemporaryDirectory() as folder:
        for number, (day, parts) in enumerate(zip(days, ranges, strict=False), start=1):
            paths = [f"{folder}/counts-{number}.parquet"]
            counts = pa.table({"value": pa.array(day, pa.int64()), "count": pa.array(day.values(), pa.int64())})
            vocabulary.write_partial(paths[0], counts, parts)
            for earlier in vocabulary.rare_files(folder, "x", number - 1):
                paths.append(f"{folder}/rare-{number}-{len(paths)}.parquet")
                vocabulary.write_partial(paths[-1], vocabulary.read_partials([earlier]), parts)
            merged = []
            for part in range(parts):
                kept, rare = vocabulary.merge_range(paths, part, limits, known)
                vocabulary.write_rare(folder, "x", number, part, rare)
                merged.append(kept)
            known = vocabulary.extended(known, pa.concat_tables(merged), limits)
            vocabulary.write_vocabulary(folder, "x", number, known, limits)
            totals.update(day)
            new = [value for value in totals if value not in expected and totals[value] >= min_count]
            expected = (expected + sorted(new, key=lambda value: (-totals[value], value)))[:max_size]
            assert known["value"].to_pylist() == expected
            assert known["id"].to_pylist() == [2 + i for i in range(len(expected))]
            assert known["count"].to_pylist() == [totals[value] for value in expected]


@pytest.mark.parametrize("ranges", ["one range", "several ranges"])
def test_vocabularies_are_extended_day_by_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranges: str) -> None:
    if ranges == "several ranges":
        monkeypatch.setattr(units, "UNIT_ROWS", 4)
        monkeypatch.setattr(vocabulary, "UNITS_PER_RANGE", 1)
    table = tmp_path / "table"
    write_day(tmp_path, 1)
    make(tmp_path)
    assert vocabularies(table) == {"user": {7: (2, 6)}, "item": {"a": (2, 3), "b": (3, 2)}}
    first = digests(table)

    write_day(tmp_path, 2)
    manifest = make(tmp_path)
    assert vocabularies(table) == {
        "user": {7: (2, 7), 9: (3, 5)},  # 8 was seen 4 times
        "item": {"a": (2, 3), "b": (3, 2), "c": (4, 2), "d": (5, 2)},  # full
    }
    assert manifest.table_rows == {"user": 4, "item": 6, "hashed": 7, "price": 5}
    assert read_split(table, manifest, "train")["user"].tolist() == [2] * 6 + [1] * 2 + [1] * 2 + [3] * 5 + [2]

    write_day(tmp_path, 3)
    manifest = make(tmp_path)
    assert vocabularies(table) == {
        "user": {7: (2, 7), 9: (3, 5), 5: (4, 6), 6: (5, 6), 8: (6, 5)},
        "item": {"a": (2, 3), "b": (3, 2), "c": (4, 2), "d": (5, 2)},
    }
    assert manifest == read_manifest(str(table)) and manifest.table_rows["user"] == 7
    rows = read_split(table, manifest, "train")
    assert rows["user"].tolist()[-13:] == [6] + [5] * 6 + [4] * 6
    assert [list(ids) for ids in rows["seen"] if len(ids)] == [[3], [1], [4], [1], [1]]
    after = digests(table)
    kept = ("train/day=1/", "encoders/price", "encoders/spent")
    assert {p: first[p] for p in first if p.startswith(kept)} == {p: after[p] for p in after if p.startswith(kept)}
    # No rare counts and no earlier generations are left.
    assert {path for path in after if path.startswith("encoders")} == {
        "encoders/encoders.json",
        "encoders/price.parquet",
        "encoders/spent.parquet",
        "encoders/generation-00003/user.parquet",
        "encoders/generation-00003/item.parquet",
    }


def test_fixed_vocabularies_do_not_change_and_may_be_extended_later(tmp_path: Path) -> None:
    write_day(tmp_path, 1)
    make(tmp_path, encoders="fixed")
    encoders = digests(tmp_path / "table/encoders")
    write_day(tmp_path, 2)
    make(tmp_path, encoders="fixed")
    assert digests(tmp_path / "table/encoders") == encoders
    write_day(tmp_path, 3)
    manifest = make(tmp_path, encoders="extend")
    # Only day 3 was counted since, so users 8 and 9 and the items of day 2 have no ids.
    assert vocabularies(tmp_path / "table") == {
        "user": {7: (2, 6), 5: (3, 6), 6: (4, 6)},
        "item": {"a": (2, 3), "b": (3, 2), "f": (4, 9)},
    }
    check_table_is_of(daily(tmp_path, encoders="fixed"), str(tmp_path / "table"), manifest)


def test_a_day_moves_from_valid_to_train(tmp_path: Path) -> None:
    table = tmp_path / "table"
    for day in (1, 2):
        write_day(tmp_path, day)
    old, new = {"train": [1, 1], "valid": [2, 2]}, {"train": [1, 2], "valid": [3, 3]}
    before = make(tmp_path, splits=old)
    write_day(tmp_path, 3)
    with pytest.raises(UserError, match=r"puts day=2 into `train`, but .* has it in `valid`\. Run `manygate prep"):
        check_table_is_of(daily(tmp_path, splits=new), str(table), before)
    manifest = make(tmp_path, splits=new)
    assert [(p.split, p.value) for p in manifest.partitions] == [("train", "1"), ("train", "2"), ("valid", "3")]
    assert not (table / "valid/day=2").exists() and not (table / "partitions/valid-2.json").exists()
    moved = read_split(table, manifest, "train")
    assert moved["key:row"].tolist() == [*range(1000, 1008), *range(2000, 2008)]
    assert moved["user"].tolist()[8:] == [1] * 2 + [3] * 5 + [2]  # 9 has an id: the day was counted
    assert vocabularies(table)["user"] == {7: (2, 7), 9: (3, 5)}
    check_table_is_of(daily(tmp_path, splits=new), str(table), manifest)
    shutil.rmtree(tmp_path / "log/day=2")
    untouched = digests(table)
    with pytest.raises(UserError, match="moves day=2 from `train` to `valid`, but .* has no files to rebuild it from"):
        make(tmp_path, splits={"train": [1, 1], "valid": [2, 3]})
    assert digests(table) == untouched


def test_a_day_that_leaves_a_sliding_window_comes_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = tmp_path / "table"
    for day in (1, 2, 3):
        write_day(tmp_path, day)
    whole = make(tmp_path, splits={"train": [1, 2], "valid": [3, 3]})
    files = {path: path.stat().st_mtime_ns for path in table.rglob("day=1/**/*.parquet")}
    narrow = {"train": [2, 2], "valid": [3, 3]}
    with pytest.raises(UserError, match=r"puts day=1 into no split, .* Run `manygate preprocess` again"):
        check_table_is_of(daily(tmp_path, splits=narrow), str(table), whole)
    shutil.rmtree(tmp_path / "log/day=1")
    with caplog.at_level("INFO"):
        manifest = make(tmp_path, splits=narrow)
    assert [p.value for p in manifest.partitions] == ["2", "3"] and read_manifest(str(table)) == manifest
    assert "now in no split, so left out of its manifest: 1" in caplog.text
    check_table_is_of(daily(tmp_path, splits=narrow), str(table), manifest)
    assert make(tmp_path, splits={"train": [1, 2], "valid": [3, 3]}) == whole
    assert files and files == {path: path.stat().st_mtime_ns for path in table.rglob("day=1/**/*.parquet")}


def test_late_files_are_reported_and_added_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = tmp_path / "table"
    for day in (1, 2):
        write_day(tmp_path, day)
    before = make(tmp_path)
    assert "have changed" not in caplog.text
    write_day(tmp_path, 1, part=1)
    write_day(tmp_path, 2, part=1)
    (tmp_path / "log/day=2/part-0.parquet").unlink()
    assert make(tmp_path) == before
    assert "day=1: its files in the log have changed" in caplog.text
    assert "(new: day=1/part-1.parquet)" in caplog.text
    assert "(new: day=2/part-1.parquet; gone: day=2/part-0.parquet)" in caplog.text
    assert f"delete {table}/partitions/train-1.json and run again" in caplog.text

    (table / "partitions/train-1.json").unlink()
    shutil.rmtree(tmp_path / "log/day=2")  # old days may leave the log
    caplog.clear()
    unusable = {name: [None] * 20 for name in SCHEMA.names}
    write_file(tmp_path / "log/day=1/part-2.parquet", unusable, SCHEMA)
    with pytest.raises(UserError, match="20 of 36 rows of day=1 cannot be used"):
        make(tmp_path)
    assert not (table / "manifest.json").exists()  # it names files that are being written again
    (tmp_path / "log/day=1/part-2.parquet").unlink()
    manifest = make(tmp_path)
    assert [p.rows_read for p in manifest.partitions] == [16, 8] and "have changed" not in caplog.text

    record = json.loads((table / "partitions/train-1.json").read_text())
    assert sorted(record.pop("log_files")) == ["day=1/part-0.parquet", "day=1/part-1.parquet"]
    del record["made_with"]
    (table / "partitions/train-1.json").write_text(json.dumps(record))  # as in records of earlier versions
    write_day(tmp_path, 1, part=2)
    assert make(tmp_path) == manifest and "have changed" not in caplog.text


def tab(*values: int, **keys: str) -> list[dict[str, Any]]:
    return [{"name": "tab", "column": "tab", "values": list(values), "other": "keep", **keys}]


def test_an_experiment_grows_by_a_scenario_value_and_a_task(tmp_path: Path) -> None:
    """The result is the table that the new experiment would have made from the start."""
    table = tmp_path / "table"
    for day in (1, 2, 3):
        write_day(tmp_path, day)
    splits = {"train": [1, 2], "valid": [3, 3]}
    before = make(tmp_path, splits=splits, scenarios=tab(2, 0))
    assert read_split(table, before, "valid")["scenario:tab"].tolist() == [[1, 2, 0, 2][i % 4] for i in range(13)]
    grown: dict[str, Any] = {"splits": splits, "scenarios": tab(2, 3, 0), "tasks": [BUY, *TASKS]}
    with pytest.raises(UserError, match="To continue, apply the changes with `manygate preprocess EXPERIMENT`, revert"):
        check_table_is_of(daily(tmp_path, **grown), str(table), before)
    manifest = make(tmp_path, **grown)
    rows = read_split(table, manifest, "valid")
    assert rows["scenario:tab"].tolist() == [[2, 3, 0, 1][i % 4] for i in range(13)]
    assert rows["label:buy"].tolist() == [float(i % 3 == 0) for i in range(13)]
    check_table_is_of(daily(tmp_path, **grown), str(table), manifest)
    preprocess(daily(tmp_path, **grown), str(tmp_path / "fresh"))
    found, fresh = digests(table), digests(tmp_path / "fresh")
    # The lineage stays that of the first fit: checkpoints of the table can be continued.
    assert {name for name in fresh if fresh[name] != found[name]} == {"manifest.json", "encoders/encoders.json"}
    assert manifest.lineage == before.lineage != read_manifest(str(tmp_path / "fresh")).lineage


def test_days_without_logs_are_removed_from_a_growing_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = tmp_path / "table"
    for day in (1, 2, 3):
        write_day(tmp_path, day)
    splits = {"train": [1, 2], "valid": [3, 3]}
    make(tmp_path, splits=splits)
    encoders = digests(table / "encoders")
    shutil.rmtree(tmp_path / "log/day=1")
    manifest = make(tmp_path, splits=splits, tasks=[*TASKS, BUY])
    assert [p.value for p in manifest.partitions] == ["2", "3"]
    assert "the logs to rebuild them are gone: day=1 (8 rows)" in caplog.text
    assert digests(table / "encoders") == encoders  # kept, and no day is counted twice
    assert not (table / "train/day=1").exists()
    caplog.clear()
    assert make(tmp_path, splits=splits, tasks=[*TASKS, BUY]) == manifest and "are gone" not in caplog.text


REFUSED: dict[str, dict[str, Any]] = {
    "a removed value": {"scenarios": tab(2, 3)},
    "values in another order": {"scenarios": tab(0, 2, 3)},
    "other": {"scenarios": tab(2, 0, 3, other="drop")},
    "an additional level": {"scenarios": [*tab(2, 0), {"name": "click", "column": "click", "values": [1]}]},
    "a changed task": {"tasks": [{**TASKS[0], "column": "buy"}, BUY]},
    "a removed task": {"tasks": [BUY]},
    "growth with another change": {"scenarios": tab(2, 0, 3), "table": {"seed": 1}},
}


def test_other_changes_are_refused(tmp_path: Path) -> None:
    write_day(tmp_path, 1)
    make(tmp_path, scenarios=tab(2, 0))
    before = digests(tmp_path / "table")
    for what, sections in REFUSED.items():
        with pytest.raises(UserError, match="was made with other settings: .*To continue, rebuild the table with"):
            make(tmp_path, **{"scenarios": tab(2, 0), **sections})
            pytest.fail(what)
    assert digests(tmp_path / "table") == before
