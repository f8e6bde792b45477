"""The Census-Income example: the output of its preparation script, and the columns that its experiment reads."""

import bz2
import gzip
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from examples.census.prepare import COLUMNS, TEST, TRAIN, main, prepare
from pipeline.config.load import load_experiment
from tests.end_to_end.conftest import ROOT

EXAMPLE = ROOT / "examples/census"
ROWS = {TRAIN: 1200, TEST: 301}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first lines of both raw files."""
    folder = tmp_path_factory.mktemp("raw")
    with bz2.open(EXAMPLE / "raw" / TRAIN) as source, bz2.open(folder / TRAIN, "wb") as target:
        target.writelines(next(source) for _ in range(ROWS[TRAIN]))
    with gzip.open(EXAMPLE / "raw" / TEST) as source, gzip.open(folder / TEST, "wb") as target:
        target.writelines(next(source) for _ in range(ROWS[TEST]))
    return folder


@pytest.fixture(scope="module")
def log(raw: Path) -> Path:
    assert prepare(raw, raw / "log", rows=ROWS) == {"train": 1200, "valid": 150, "test": 151}
    return raw / "log"


def split(log: Path, name: str) -> pd.DataFrame:
    return pq.read_table(log / f"split={name}/part-0.parquet", partitioning=None).to_pandas()


def test_the_features_are_all_columns_except_labels_weight_key_and_scenario(log: Path) -> None:
    experiment = load_experiment(EXAMPLE / "experiment.yaml")
    inputs = {feature.column for feature in experiment.features}
    assert not inputs & {"income", "never_married", "marital_status", "instance_weight", "line"}
    assert [task.column for task in experiment.tasks] == ["income", "never_married"]
    for name in experiment.logs.splits:
        columns = set(split(log, name).columns)
        assert columns == set(COLUMNS) - {"marital_status", "instance_weight"} | {"sector", "never_married", "line"}
        assert inputs == columns - {"income", "never_married", "sector", "line"}
        assert set(split(log, name)["sector"]) == set(experiment.scenarios[0].values)


def test_rows_are_those_of_the_raw_files(raw: Path, log: Path) -> None:
    """Compares them with the raw text: columns 8 (marital status), 12 (Hispanic origin), 36 (citizenship), 42."""
    with bz2.open(raw / TRAIN, "rt") as file:
        fields = [[field.strip() for field in line.split(",")] for line in file]
    train = split(log, "train")
    assert list(train["line"]) == list(range(1, ROWS[TRAIN] + 1))
    assert list(train["never_married"]) == [int(row[7] == "Never married") for row in fields]
    assert list(train["hispanic_origin"]) == [row[11] for row in fields]
    assert list(train["citizenship"]) == [row[35] for row in fields]
    assert list(train["income"]) == [int(row[41] == "50000+.") for row in fields]
    assert "NA" in set(train["hispanic_origin"]) and not train.isna().any(axis=None)
    assert 0 < train["income"].sum() < train["never_married"].sum() < len(train)


def test_the_halves_of_the_test_file_are_disjoint_complete_and_the_same_every_time(
    raw: Path, log: Path, tmp_path: Path
) -> None:
    valid, test = split(log, "valid")["line"], split(log, "test")["line"]
    assert sorted([*valid, *test]) == list(range(1, ROWS[TEST] + 1))
    prepare(raw, tmp_path / "again", rows=ROWS)
    prepare(raw, tmp_path / "other", seed=1, rows=ROWS)
    for name in ("train", "valid", "test"):
        pd.testing.assert_frame_equal(split(tmp_path / "again", name), split(log, name))
    assert set(split(tmp_path / "other", "test")["line"]) != set(test)


def test_files_other_than_the_published_ones_are_errors(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"{TRAIN} has 1,200 rows of 42 columns where 199,523 of 42 were expected"):
        main(["--raw", str(raw), "--log", str(tmp_path / "log")])
    with pytest.raises(SystemExit, match=f"{TRAIN} does not exist"):
        main(["--raw", str(tmp_path), "--log", str(tmp_path / "log")])
    assert not (tmp_path / "log").exists(), "nothing half-written"
