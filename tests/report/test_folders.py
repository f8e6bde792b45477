"""The description of a feature table."""

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.report.folders import describe_table
from pipeline.table.manifest import LaneFile, Manifest, Partition, TableColumn, write_manifest


@pytest.fixture
def manifest() -> Manifest:
    lanes = [[LaneFile("a", 600, 2048)], [LaneFile("b", 590, 2048)]]
    train = Partition("train", "1", 1203, 3, 10, lanes, {"key k: value is missing": 3}, ["day=1/torn.parquet"])
    test = Partition("test", "2", 0, 0, 0, [[], []], ids={"user": 8}, unknown={"user": 2}, missing={"user": 1})
    return Manifest("f" * 64, 2, 16, [TableColumn("user", "int32")], {"user": 12}, [train, test], ["3"])


def test_the_description_of_a_table(manifest: Manifest, tmp_path: Path) -> None:
    write_manifest(str(tmp_path), manifest)
    text = describe_table(str(tmp_path))
    for line in (
        "  train: 1 partitions, 1,203 = 1,190 + 3 + 10 rows, 4.0 KiB",
        "    2: 0 = 0 + 0 + 0 rows, 0 B",
        "  in the logs, in no split: 3",
        "  3: key k: value is missing",
        "Skipped file, not readable: day=1/torn.parquet",
        "  train: 590 to 600 rows per lane (1.67% uneven)",
        "  user: 12 rows",
        "  user: train no ids / no ids, test 25.00% / 12.50%",
        "  user: int32",
    ):
        assert line in text.splitlines()
    with pytest.raises(UserError, match="no finished feature table"):
        describe_table(str(tmp_path / "nowhere"))
