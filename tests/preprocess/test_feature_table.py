"""A whole feature table compared with the same computation in pandas."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.features import vocabulary
from pipeline.features.values import hash_values
from pipeline.preprocess import units
from pipeline.preprocess.job import preprocess
from pipeline.table.manifest import Manifest, read_manifest
from tests.preprocess.logs import DAYS, digests, experiment, read_days, read_split, write_log, write_side


class Made:
    """A table with the log that it was made from."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest, self.table = folder, manifest, folder / "table"
        self.train = read_days(folder, DAYS[:2])
        self.rows = {split: read_split(self.table, manifest, split) for split in ("train", "valid", "test")}
        self.log = {"train": self.train, "valid": read_days(folder, DAYS[2:3]), "test": read_days(folder, DAYS[3:])}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, ray_is_up: None) -> Made:
    folder = tmp_path_factory.mktemp("made")
    write_log(folder / "log")
    write_side(folder / "side.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "UNIT_ROWS", 100)  # two units per file, eight in the train split ...
        patch.setattr(vocabulary, "UNITS_PER_RANGE", 3)  # ... merged in three ranges
        return Made(folder, preprocess(experiment(folder), str(folder / "table")))


def ids_by_count(values: Iterable[Any], min_count: int = 1, max_size: int | None = None) -> dict[Any, int]:
    counts = Counter(value for value in values if not pd.isna(value))
    best = sorted((c for c in counts.items() if c[1] >= min_count), key=lambda c: (-c[1], c[0]))[:max_size]
    return {value: i + 2 for i, (value, _) in enumerate(best)}


def encoded(values: Iterable[Any], ids: dict[Any, int]) -> list[int]:
    return [0 if pd.isna(value) else ids.get(value, 1) for value in values]


def cleaned(value: Any, last: int | None = None) -> list[Any]:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return []
    kept = [part for part in value if not pd.isna(part)]
    return kept[-last:] if last else kept


def flat(lists: Iterable[list[Any]]) -> list[Any]:
    return [item for items in lists for item in items]


SPLITS = pytest.mark.parametrize("split", ["train", "valid", "test"])


@SPLITS
def test_every_row_is_kept_once_with_its_key(made: Made, split: str) -> None:
    assert made.rows[split]["key:row"].tolist() == made.log[split]["row"].tolist()


@SPLITS
def test_vocabularies_equal_counting_in_python(made: Made, split: str) -> None:
    log, rows = made.log[split], made.rows[split]
    users = ids_by_count(made.train["user"], min_count=3)
    assert rows["user"].tolist() == encoded(log["user"], users)
    assert made.manifest.table_rows["user"] == len(users) + 2
    assert rows["flag"].tolist() == encoded(log["flag"], ids_by_count(made.train["flag"]))
    assert rows["brand"].tolist() == encoded(log["brand"], ids_by_count(made.train["brand"]))


@SPLITS
def test_a_shared_table_counts_all_its_features(made: Made, split: str) -> None:
    log, rows, train = made.log[split], made.rows[split], made.train
    topics = [cleaned(value) for value in train["topics"]]
    histories = [cleaned(value, last=5) for value in train["history"]]
    items = ids_by_count([*train["item"], *flat(topics), *flat(histories)], max_size=18)
    assert made.manifest.table_rows["item"] == 20
    assert rows["item"].tolist() == encoded(log["item"], items)
    assert [list(v) for v in rows["topics"]] == [encoded(cleaned(value), items) for value in log["topics"]]
    assert [list(v) for v in rows["history"]] == [encoded(cleaned(value, 5), items) for value in log["history"]]


@SPLITS
def test_separated_texts_and_joined_lists_are_encoded(made: Made, split: str) -> None:
    def words(value: Any) -> list[str]:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else []

    ids = ids_by_count(flat(words(value) for value in made.train["words"]))
    assert [list(v) for v in made.rows[split]["words"]] == [encoded(words(v), ids) for v in made.log[split]["words"]]
    years = ids_by_count(flat(cleaned(value, 1) for value in made.train["years"]))
    expected = [encoded(cleaned(value, 1), years) for value in made.log[split]["years"]]
    assert [list(v) for v in made.rows[split]["years"]] == expected


@SPLITS
def test_hashed_ids_follow_the_hash(made: Made, split: str) -> None:
    texts = made.log[split]["item"]
    hashes = hash_values(pa.array(texts.fillna("").tolist(), pa.large_string())) % np.uint64(7) + np.uint64(2)
    assert made.rows[split]["hashed"].tolist() == np.where(texts.isna(), 0, hashes.astype(int)).tolist()
    assert made.manifest.table_rows["hashed"] == 9


@SPLITS
def test_numbers_are_bucketed_or_standardised(made: Made, split: str) -> None:
    log, rows, train = made.log[split], made.rows[split], made.train
    edges = np.unique(np.quantile(train["price"].dropna(), np.arange(1, 8) / 8, method="inverted_cdf"))
    buckets = np.searchsorted(edges, log["price"], side="right") + 2
    assert rows["price"].tolist() == np.where(log["price"].isna(), 0, buckets).tolist()
    assert made.manifest.table_rows["price"] == 10
    for name, seen, values in (
        ("visits", train["visits"], log["visits"]),
        ("log_price", np.log1p(train["price"]), np.log1p(log["price"])),
    ):
        expected = ((values - seen.mean()) / seen.std(ddof=0)).fillna(0)
        np.testing.assert_allclose(rows[name], expected, rtol=1e-5, atol=1e-6)


@SPLITS
def test_labels_are_transformed_and_scenarios_indexed(made: Made, split: str) -> None:
    log, rows = made.log[split], made.rows[split]
    assert rows["label:click"].tolist() == log["click"].astype(float).tolist()
    np.testing.assert_allclose(rows["label:spent"], np.log1p(log["spent"].astype(float) * 0.5), rtol=1e-6)
    assert rows["scenario:tab"].tolist() == log["tab"].map({2: 0, 0: 1}).fillna(2).astype(int).tolist()


def test_the_manifest_describes_the_files(made: Made) -> None:
    manifest = read_manifest(str(made.table))
    assert manifest == made.manifest
    for partition in manifest.partitions:
        assert (
            partition.rows_read
            == partition.kept + partition.quarantined + partition.filtered + partition.sampled_out
            == 260
        )
        lengths = [sum(file.rows for file in lane) for lane in partition.lanes]
        assert max(lengths) - min(lengths) <= 4  # at most one per unit
        for lane in partition.lanes:
            for file in lane:
                metadata = pq.read_metadata(made.table / file.path)
                assert metadata.num_rows == file.rows
                assert (made.table / file.path).stat().st_size == file.bytes
                groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
                assert all(rows == 16 for rows in groups[:-1])
                schema = pq.read_schema(made.table / file.path)
                assert schema.names == [column.name for column in manifest.columns]
                assert schema.field("item").type == pa.int32() and schema.field("visits").type == pa.float32()
                assert schema.field("topics").type == pa.list_(pa.field("element", pa.int32()))
    assert {column.name: column.type for column in manifest.columns}["history"] == "list<int32>"
    assert not (made.table / "work").exists()


def test_the_manifest_counts_unknown_and_missing_ids(made: Made) -> None:
    (partition,) = made.manifest.split("test")
    log, rows = made.log["test"], made.rows["test"]
    assert partition.ids["user"] == len(rows)
    assert partition.missing["user"] == log["user"].isna().sum()
    assert partition.unknown["user"] == (rows["user"] == 1).sum() > 0
    nulls = sum(pd.isna(part) for value in log["topics"] if value is not None for part in value)
    assert partition.missing["topics"] == nulls > 0
    assert partition.ids["topics"] == nulls + sum(len(value) for value in rows["topics"])
    assert partition.missing["price"] == log["price"].isna().sum()


def test_rows_are_shuffled_over_the_lanes(made: Made) -> None:
    (partition,) = made.manifest.split("valid")
    for lane in partition.lanes:
        keys = np.concatenate([pq.read_table(made.table / f.path)["key:row"].to_numpy() for f in lane])
        assert not np.array_equal(keys, np.sort(keys))


def test_another_run_gives_the_same_bytes_and_another_seed_does_not(made: Made, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "UNIT_ROWS", 100)
        again = preprocess(experiment(made.folder), str(tmp_path / "table"))  # merged in one range
        assert digests(tmp_path / "table") == digests(made.table)
        other = preprocess(experiment(made.folder, table={"seed": 1}), str(tmp_path / "other"))
    assert again.rows("train") == other.rows("train")
    before, after = digests(made.table), digests(tmp_path / "other")
    assert all(after[path] == digest for path, digest in before.items() if path.startswith("encoders"))
    lanes = [path for path in before if "/lane-" in path]
    assert sum(before[path] == after.get(path) for path in lanes) < len(lanes) / 10
