"""Turns the raw Census-Income (KDD) files into the Parquet log that examples/census/experiment.yaml reads.

raw/census-income.data.bz2  ->  log/split=train/part-0.parquet
raw/census-income.test.gz   ->  log/split=valid/part-0.parquet and log/split=test/part-0.parquet, half of the rows each
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).resolve().parent
TRAIN, TEST = "census-income.data.bz2", "census-income.test.gz"
ROWS = {TRAIN: 199_523, TEST: 99_762}

COLUMNS = """
    age class_of_worker industry_code occupation_code education wage_per_hour enrolled marital_status industry
    occupation race hispanic_origin sex union_member unemployment_reason employment capital_gains capital_losses
    dividends tax_filer previous_region previous_state household_detail household_summary instance_weight
    migration_msa migration_region migration_within_region same_house_year_ago migration_sunbelt employer_size
    parents_present father_birth_country mother_birth_country birth_country citizenship own_business
    veterans_questionnaire veterans_benefits weeks_worked year income
""".split()  # noqa: SIM905 (a quoted list would take 42 lines)

# The scenarios: the sector that pays. Unpaid family workers are counted as own business, as in labour statistics.
SECTORS = {
    "Not in universe": "none",
    "Never worked": "none",
    "Private": "private",
    "Federal government": "government",
    "State government": "government",
    "Local government": "government",
    "Self-employed-not incorporated": "own_business",
    "Self-employed-incorporated": "own_business",
    "Without pay": "own_business",
}


def read(file: Path, rows: int) -> pd.DataFrame:
    """Reads a raw file: all inputs, the scenario `sector`, the labels, and `line`, the line number in the file, from 1.

    Raises:
        SystemExit: the file does not exist, or is not the published file.
    """
    if not file.is_file():
        raise SystemExit(f"{file} does not exist: give the folder of the downloaded files with --raw.")
    # The category 'NA' (no answer) would be read as a null, and empty fields do not occur.
    frame = pd.read_csv(file, header=None, skipinitialspace=True, keep_default_na=False)
    if frame.shape != (rows, len(COLUMNS)):
        raise SystemExit(
            f"{file} has {len(frame):,} rows of {frame.shape[1]} columns where {rows:,} of {len(COLUMNS)} were "
            "expected: the file is truncated, or is another file; copy it again."
        )
    frame.columns = pd.Index(COLUMNS)
    texts = frame.select_dtypes(exclude="number").columns
    frame[texts] = frame[texts].apply(lambda column: column.str.strip())
    frame["sector"] = frame["class_of_worker"].map(SECTORS)
    frame["never_married"] = (frame["marital_status"] == "Never married").astype("int8")
    frame["income"] = (frame["income"] == "50000+.").astype("int8")
    frame["line"] = np.arange(1, len(frame) + 1)
    return frame.drop(columns=["marital_status", "instance_weight"])


def prepare(raw: Path, log: Path, seed: int = 0, rows: dict[str, int] = ROWS) -> dict[str, int]:
    """Writes the log and returns the number of rows per split. The same seed gives the same halves of the test file.

    Args:
        raw: Folder of the two raw files.
        log: Folder to write into; files of an earlier call are replaced.
        seed: Seed of the permutation that halves the test file.
        rows: Number of rows that each raw file must have.
    """
    train, test = read(raw / TRAIN, rows[TRAIN]), read(raw / TEST, rows[TEST])
    order = np.random.default_rng(seed).permutation(len(test))
    valid, rest = np.sort(order[: len(test) // 2]), np.sort(order[len(test) // 2 :])
    splits = {"train": train, "valid": test.iloc[valid], "test": test.iloc[rest]}
    for name, frame in splits.items():
        file = log / f"split={name}" / "part-0.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(), file)
    return {name: len(frame) for name, frame in splits.items()}


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--raw", type=Path, default=HERE / "raw", help="folder of the two raw files")
    parser.add_argument("--log", type=Path, default=HERE / "log", help="folder to write the log to")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split of the test file into halves")
    options = parser.parse_args(arguments)
    for name, rows in prepare(options.raw, options.log, options.seed).items():
        print(f"{options.log}/split={name}: {rows:,} rows")


if __name__ == "__main__":
    main()
