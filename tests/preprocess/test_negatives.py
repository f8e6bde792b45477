"""Down-sampling of negatives: which rows are kept, with which weights, and that the choice is always the same."""

import math
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.preprocess import units
from pipeline.report.folders import describe_table
from pipeline.table.manifest import Manifest
from tests.preprocess.test_labels_and_weights import CLICK, NAN, SPENT, USER, make, only_partition, rows_of, write

pytestmark = pytest.mark.usefixtures("without_ray")


ROWS = 4000
KEEP = {"negatives": {"task": "click", "keep": 0.2}}


def write_clicks(folder: Path, day: int = 1, order: np.ndarray | None = None, **options: Any) -> pd.DataFrame:
    """Writes 4,000 rows, nine in ten without a click; the key identifies a row also in another order."""
    rng = np.random.default_rng(day)
    click = pd.array(np.where(rng.random(ROWS) < 0.1, 1, 0), "Int64")
    click[:40] = pd.NA
    frame = pd.DataFrame({"row": np.arange(ROWS) + 10_000 * day, "click": click, "spent": rng.integers(0, 5, ROWS)})
    shuffled = frame if order is None else frame.iloc[order]
    arrow = {name: pa.array(shuffled[name]) for name in ("row", "click", "spent")}
    write(folder, day, arrow, **options)
    return frame.set_index("row")


SAMPLED_TASKS = [{**CLICK, "missing": "skip"}, SPENT]


def test_negatives_of_the_train_split_are_sampled_and_weighted(tmp_path: Path) -> None:
    """All other rows are kept; the weights of the kept negatives add up to about the number of negatives."""
    log, test = write_clicks(tmp_path), write_clicks(tmp_path, 2)
    manifest = make(tmp_path, logs=KEEP, tasks=SAMPLED_TASKS)
    found = rows_of(tmp_path, manifest)
    negatives = int((log["click"] == 0).sum())
    dropped = set(log.index) - found.keys()
    assert (log.loc[sorted(dropped), "click"] == 0).all()
    assert only_partition(manifest).sampled_out == len(dropped)
    # 3,560 or so negatives: a share of 0.2 has the standard deviation 0.0067.
    assert abs((negatives - len(dropped)) / negatives - 0.2) < 4 * math.sqrt(0.2 * 0.8 / negatives)
    for values in found.values():
        weight = 5 if values["label:click"] == 0 else 1
        assert values["weight:click"] == values["weight:spent"] == weight
    everything = rows_of(tmp_path, manifest, "test")
    assert everything.keys() == set(test.index) and only_partition(manifest, "test").sampled_out == 0
    assert all(row["weight:click"] == 1 for row in everything.values())
    read, kept = f"{ROWS:,}", ROWS - len(dropped)
    assert f"train: {kept:,} rows in 1 partitions ({read} read, 0 quarantined, 0 filtered out, {len(dropped):,} sampled"
    described = describe_table(str(tmp_path / "table"))
    assert "Splits: rows read = kept + quarantined + filtered out + sampled out" in described
    assert f"1: {read} = {kept:,} + 0 + 0 + {len(dropped):,} rows" in described
    assert f"2: {read} = {read} + 0 + 0 + 0 rows" in described


def test_encoders_are_fitted_on_the_whole_log(tmp_path: Path) -> None:
    """Vocabularies and moments are those of the rows before sampling."""
    write_clicks(tmp_path)
    write_clicks(tmp_path, 2)
    spent = {"name": "amount", "column": "row", "kind": "numeric", "encode": {"standardize": "identity"}}
    ids = {**USER, "name": "id", "column": "row"}
    for table, logs in (("all", {}), ("sampled", KEEP)):
        make(tmp_path, table, logs=logs, tasks=SAMPLED_TASKS, features=[ids, spent])
    for name in ("id", "amount"):
        one, two = (pq.read_table(tmp_path / t / f"encoders/{name}.parquet") for t in ("all", "sampled"))
        assert one.equals(two)


def kept_keys(folder: Path, into: str, **sections: Any) -> set[int]:
    manifest = make(folder, into, logs=KEEP, tasks=SAMPLED_TASKS, **sections)
    return set(rows_of(folder, manifest, table=into))


def test_the_choice_depends_on_the_keys_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on the order of rows and files, their names, units, types of the key column, partitions, and runs."""
    first = tmp_path / "first"
    write_clicks(first)
    write_clicks(first, 2)
    kept = kept_keys(first, "table")
    assert kept == kept_keys(first, "again")
    assert kept != kept_keys(first, "seed", table={"seed": 1})
    moved = tmp_path / "moved"
    log = pq.read_table(first / "log/day=1/a.parquet", partitioning=None)
    parts = log.take(pa.array(np.random.default_rng(0).permutation(ROWS)))
    for name, type_, start in (("z", pa.float64(), 0), ("b", pa.uint64(), 1500), ("c", pa.int32(), 3000)):
        part = parts.slice(start, 1500)
        path = moved / f"log/day=1/{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(part.set_column(0, "row", part["row"].cast(type_)), path, row_group_size=100)
    write_clicks(moved, 2)
    monkeypatch.setattr(units, "UNIT_ROWS", 300)
    assert kept == kept_keys(moved, "table", table={"lanes": 2})


def test_the_choice_stays_the_same_in_later_versions(tmp_path: Path) -> None:
    """A table that is extended day after day, or rebuilt, keeps the same rows."""
    for day in (1, 2):
        write(tmp_path, day, {"row": range(40), "click": [0] * 40, "spent": [0] * 40})
    assert kept_keys(tmp_path, "table") == {14, 17, 26, 27}


def test_without_keys_the_choice_depends_on_file_and_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = write_clicks(tmp_path, group_rows=100)
    write_clicks(tmp_path, 2)
    label = {
        "features": [USER, {"name": "id", "column": "row", "kind": "numeric", "encode": {"standardize": "identity"}}]
    }

    def kept_rows(table: str) -> list[float]:
        manifest = make(tmp_path, table, logs={**KEEP, "keys": []}, tasks=SAMPLED_TASKS, **label)
        files = [file for partition in manifest.split("train") for lane in partition.lanes for file in lane]
        return sorted(v for f in files for v in pq.read_table(tmp_path / table / f.path)["id"].to_pylist())

    kept = kept_rows("table")
    monkeypatch.setattr(units, "UNIT_ROWS", 300)
    assert kept == kept_rows("units")
    assert 0.15 * ROWS < len(kept) < 0.45 * ROWS
    before = set(kept)
    (tmp_path / "log/day=1/a.parquet").rename(tmp_path / "log/day=1/b.parquet")
    assert before != set(kept_rows("renamed"))
    assert len(log) == ROWS


@pytest.mark.parametrize(
    "key",
    [
        pa.array([f"user {n}" for n in range(400)]),
        pa.array([f"user {n}" for n in range(400)]).dictionary_encode(),
        pa.array([n + 0.5 for n in range(400)]),
        pa.array([date.fromordinal(700_000 + n) for n in range(400)]),
        pa.array([datetime(2024, 1, 1, n // 60 % 24, n % 60, n // 1440) for n in range(400)]),
        pa.array([Decimal(n) / 100 for n in range(400)]),
        pa.array([n.to_bytes(4) for n in range(400)], pa.binary(4)),
        pa.array([[n, n + 1] for n in range(400)]),
        pa.array([2**63 + n for n in range(400)], pa.uint64()),
        pa.array([-n for n in range(400)], pa.int16()),
    ],
    ids=lambda key: str(key.type),
)
def test_keys_of_any_type_decide(tmp_path: Path, key: pa.Array) -> None:
    """About a fifth is kept, and the same keys are kept in another file and in another order."""
    for day in (1, 2):
        write(tmp_path, day, {"row": key, "click": [0] * 400})
    logs = {**KEEP, "splits": {"train": [1, 2]}, "keys": ["row"]}
    one, two = kept_by_day(tmp_path, make(tmp_path, logs=logs))
    assert one == two and 40 < len(one) < 130
    backwards = pa.array(range(399, -1, -1))
    write(tmp_path, 2, {"row": key.take(backwards), "click": [0] * 400})
    assert kept_by_day(tmp_path, make(tmp_path, overwrite=True, logs=logs)) == [one, one]


NUMBERS = range(120)
MOMENTS = [datetime(2026, 1, 1) + timedelta(hours=7 * n) for n in NUMBERS]
DATES = [date(2026, 1, 1) + timedelta(days=n) for n in NUMBERS]
SPELLINGS: dict[str, list[pa.Array]] = {
    "moments": [pa.array(MOMENTS, pa.timestamp(unit)) for unit in ("s", "ms", "us", "ns")],
    "zones": [pa.array(MOMENTS, pa.timestamp("us", zone)) for zone in (None, "UTC")],
    "dates": [pa.array(DATES).cast(type_) for type_ in (pa.date32(), pa.timestamp("us"))],
    "times": [pa.array([time(n % 24, n // 24) for n in NUMBERS], t) for t in (pa.time32("s"), pa.time64("ns"))],
    "durations": [pa.array([timedelta(seconds=n) for n in NUMBERS], pa.duration(unit)) for unit in ("s", "us", "ns")],
    "decimals": [pa.array([Decimal(n) for n in NUMBERS], pa.decimal128(9, scale)) for scale in (0, 2)],
    "bytes": [pa.array([f"{n:04}".encode() for n in NUMBERS], type_) for type_ in (pa.binary(), pa.binary(4))],
    "texts": [pa.array([f"{n:04}" for n in NUMBERS], type_) for type_ in (pa.string(), pa.string_view())],
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_choice_does_not_depend_on_the_type_that_stores_a_key(tmp_path: Path, spelling: str) -> None:
    """Tools that rewrite a log change units of time, the scale of decimals, and how texts are stored."""
    kept = []
    for i, key in enumerate(SPELLINGS[spelling]):
        for day in (1, 2):
            write(tmp_path / str(i), day, {"id": key, "click": [0] * len(key), "user": list(NUMBERS)})
        manifest = make(tmp_path / str(i), logs={"keys": ["id"], "negatives": {"task": "click", "keep": 0.5}})
        files = [file for lane in only_partition(manifest).lanes for file in lane]
        read = pa.concat_tables([pq.read_table(tmp_path / str(i) / "table" / f.path, partitioning=None) for f in files])
        kept.append(sorted(read["user"].to_pylist()))
    assert len(kept) > 1 and 0.3 * len(NUMBERS) < len(kept[0]) < 0.7 * len(NUMBERS)
    assert all(rows == kept[0] for rows in kept)


def kept_by_day(folder: Path, manifest: Manifest) -> list[set[str]]:
    found = []
    for partition in manifest.split("train"):
        read = [pq.read_table(folder / "table" / f.path) for lane in partition.lanes for f in lane]
        found.append({str(value) for part in read for value in part["key:row"].to_pylist()})
    return found


def test_rows_without_a_key_are_quarantined_and_not_sampled(tmp_path: Path) -> None:
    for day in (1, 2):
        rows = pa.array([None, 1, NAN, 3, 4, 5], pa.float64())
        write(tmp_path, day, {"row": rows, "click": [0, 1, 0, 1, 0, 0]})
    train = only_partition(make(tmp_path, logs={"negatives": {"task": "click", "keep": 1e-9}}))
    assert train.reasons == {"key row: value is missing": 2} and (train.kept, train.sampled_out) == (2, 2)


def test_two_keys_decide_together(tmp_path: Path) -> None:
    """Rows that share one key are not kept or dropped together; the order of the keys is part of the hash."""
    one, two = np.divmod(np.arange(2500), 50)
    for day in (1, 2):
        write(tmp_path, day, {"row": np.arange(2500), "one": one, "two": two, "click": [0] * 2500})
    kept = []
    for keys in (["one", "two"], ["two", "one"]):
        manifest = make(tmp_path, "-".join(keys), logs={**KEEP, "keys": ["row", *keys]})
        kept.append(set(rows_of(tmp_path, manifest, table="-".join(keys))))
    assert kept[0] != kept[1]
    shares = np.bincount([row // 50 for row in kept[0]], minlength=50) / 50
    assert shares.max() < 0.6 and abs(shares.mean() - 0.2) < 0.05


def test_keeping_all_negatives_changes_only_the_columns(tmp_path: Path) -> None:
    log = write_clicks(tmp_path)
    write_clicks(tmp_path, 2)
    manifest = make(tmp_path, logs={"negatives": {"task": "click", "keep": 1.0}}, tasks=SAMPLED_TASKS)
    found = rows_of(tmp_path, manifest)
    assert found.keys() == set(log.index) and all(row["weight:spent"] == 1 for row in found.values())


def test_a_split_of_which_sampling_keeps_nothing_is_refused(tmp_path: Path) -> None:
    for day in (1, 2):
        write(tmp_path, day, {"click": [0, 0]})
    message = (
        "train: no row is left of its 2 rows .*0 filtered out, 2 sampled out, 0 files.*raise logs.negatives.keep and"
    )
    with pytest.raises(UserError, match=message):
        make(tmp_path, logs={"negatives": {"task": "click", "keep": 1e-9}})
    manifest = make(tmp_path, logs={"negatives": {"task": "click", "keep": 1.0}}, overwrite=True)
    assert only_partition(manifest).kept == 2
