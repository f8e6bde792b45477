"""Errors that are reported before anything is written. None of these tests needs Ray."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.preprocess.job import preprocess
from tests.preprocess.logs import FEATURES, LOG_SCHEMA, experiment, log_rows, write_file, write_log, write_side


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_log(tmp_path / "log", rows=5)
    write_side(tmp_path / "side.parquet")
    return tmp_path


def refused(folder: Path, *messages: str, **sections: Any) -> None:
    """The experiment fails with an error that contains all messages, and nothing is written."""
    with pytest.raises(UserError) as error:
        preprocess(experiment(folder, **sections), str(folder / "table"))
    for part in messages:
        assert re.search(part, str(error.value)), f"{part!r} is not in: {error.value}"
    assert not (folder / "table").exists()


def test_wrong_folders_are_refused(folder: Path) -> None:
    refused(folder, r"no folder .*/nowhere\b", logs={"path": str(folder / "nowhere")})
    refused(folder, "no folders hour=VALUE", "day=20240101, .*", logs={"partition": "hour"})
    splits = {"train": [20240101, 20240102], "valid": [20250101, 20250102]}
    refused(
        folder, r"logs.splits.valid: .*between 20250101 and 20250102", "20240101, .*20240104", logs={"splits": splits}
    )
    (folder / "log/day=tomorrow").mkdir()
    refused(folder, "day=tomorrow", "texts")


def test_a_log_without_parquet_files_is_refused(folder: Path) -> None:
    for path in (folder / "log").rglob("*.parquet"):
        path.unlink()
        path.with_suffix(".csv").write_text("row,user")
    refused(folder, r"no readable Parquet file")


def test_a_split_of_texts_without_partition_is_refused(folder: Path) -> None:
    (folder / "log/day=tomorrow").mkdir()
    splits = {"train": ["20240101", "20240102"], "valid": ["20240105", "20240109"]}
    refused(folder, "logs.splits.valid: no partition", logs={"splits": splits})


def with_feature(**feature: Any) -> list[dict[str, Any]]:
    ids = {"ids": {"vocabulary": {}}, "dim": 2} if feature["kind"] != "numeric" else {}
    return [{"name": "new", **ids, **feature}]


@pytest.mark.parametrize(
    ("feature", "messages"),
    [
        ({"column": "usr", "kind": "categorical"}, ["'usr', which feature 'new' .features.0.column.", "'user'"]),
        (
            {"column": "topics", "kind": "categorical"},
            ["'topics'", "list<.*string>", "whole numbers, texts or booleans"],
        ),
        (
            {"column": "item", "kind": "numeric", "encode": {"standardize": "log1p"}},
            ["is string", "expected an integer"],
        ),
        ({"column": "words", "kind": "multivalued"}, ["is large_string", "`separator`"]),
        ({"column": "topics", "kind": "multivalued", "separator": ","}, ["split at the separator"]),
        ({"column": "item", "kind": "sequence", "max_length": 3}, ["expected lists of"]),
    ],
)
def test_features_with_wrong_columns_are_refused(folder: Path, feature: dict[str, Any], messages: list[str]) -> None:
    refused(folder, *messages, features=with_feature(**feature))


def test_wrong_labels_scenarios_and_keys_are_refused(folder: Path) -> None:
    refused(folder, "'clicked', which task 'click' .tasks.0.column.", "did you mean 'click'",
            tasks=[{"name": "click", "column": "clicked", "kind": "binary"}])  # fmt: skip
    task = {"name": "c", "column": "unused", "kind": "binary"}
    refused(folder, "'unused', which task 'c'", "is string in the log file day=20240101/part-0.parquet", tasks=[task])
    scenario = {"name": "tab", "column": "tab", "values": ["2", "0"]}
    refused(folder, "scenarios.0.values: .*whole numbers, but '2'", scenarios=[scenario])
    refused(folder, "'price2', which the key .logs.keys.0.", logs={"keys": ["price2"]})


def test_a_shared_table_with_two_kinds_of_ids_is_refused(folder: Path) -> None:
    shares = {"name": "other", "column": "visits", "kind": "categorical", "shares": "item"}
    refused(
        folder, "features.12.shares: 'other' has whole numbers", "'item', .* has texts", features=[*FEATURES, shares]
    )


def write_table(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_wrong_side_tables_are_refused(folder: Path) -> None:
    def joined(path: str, key: str = "item") -> dict[str, Any]:
        return {"joins": [{"path": str(folder / "side.parquet"), "key": "item"}, {"path": path, "key": key}]}

    other = folder / "other.parquet"
    refused(folder, r"logs.joins.1.path: there is no file", logs=joined(str(other)))
    other.write_text("not Parquet")
    refused(folder, r"logs.joins.1.path: .*cannot be read as Parquet", logs=joined(str(other)))
    path = write_table(other, item=["a", "b"], thing=[1, 2])
    refused(folder, r"logs.joins.1.key: .*no column 'itm'; did you mean 'item'", logs=joined(path, "itm"))
    refused(folder, r"The log has no column 'thing', which the join .logs.joins.1.key.", logs=joined(path, "thing"))
    path = write_table(other, item=["a", "b", "a", None, None])
    refused(folder, r"logs.joins.1: 1 values of the key 'item' .* for example 'a'", logs=joined(path))
    path = write_table(other, item=[1, 2])
    refused(folder, r"logs.joins.1.key: 'item' is text in the log but int", logs=joined(path))
    path = write_table(other, item=["a"], price=[1.0], unused=["fine: not used"])
    refused(folder, r"'price', which feature 'price'.* is in the log and in .*other.parquet", logs=joined(path))
    path = write_table(other, item=["a"], brand=["b"])
    refused(folder, r"'brand'.* is in .*side.parquet and in .*other.parquet", logs=joined(path))


def change(column: str, type_: pa.DataType | None) -> Callable[[Path], None]:
    """Rewrites one file of the log, with a column of another type or without the column."""

    def write(path: Path) -> None:
        rows = log_rows(5, seed=1)
        at = LOG_SCHEMA.get_field_index(column)
        if type_ is None:
            del rows[column]
            write_file(path, rows, LOG_SCHEMA.remove(at))
        else:
            rows[column] = np.arange(5).tolist() if pa.types.is_integer(type_) else [str(n) for n in range(5)]
            write_file(path, rows, LOG_SCHEMA.set(at, pa.field(column, type_)))

    return write


@pytest.mark.parametrize(
    ("damage", "messages"),
    [
        (change("item", None), ["log file day=20240104/part-1.parquet has no column 'item'", "other files have it"]),
        (change("item", pa.int64()), ["'item'", "string in .* but int64 in .*day=20240104/part-1.parquet"]),
        (change("price", pa.string()), ["'price'", "is string in the log file day=20240104/part-1.parquet"]),
        (change("row", pa.string()), ["'row', which the key", "int64, string"]),
    ],
)
def test_one_file_that_differs_is_refused(folder: Path, damage: Callable[[Path], None], messages: list[str]) -> None:
    damage(folder / "log/day=20240104/part-1.parquet")
    refused(folder, *messages)


def test_a_broken_file_and_an_empty_train_split_are_refused(folder: Path) -> None:
    for part in range(2):
        write_file(folder / f"log/day=20240101/part-{part}.parquet", log_rows(0, seed=0))
        write_file(folder / f"log/day=20240102/part-{part}.parquet", log_rows(0, seed=0))
    refused(folder, "logs.splits.train: its partitions have no rows")
    (folder / "log/day=20240103/part-0.parquet").write_bytes(b"PAR1 and no more")
    refused(folder, r"/log/day=20240103/part-0.parquet cannot be read", "unreadable_files=skip")
