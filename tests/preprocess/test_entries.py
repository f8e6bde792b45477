"""Which files of a log are data: Parquet under any name; table formats are refused."""

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.preprocess.discover import PartitionFiles, read_files
from pipeline.preprocess.partitions import find_partitions
from tests.preprocess.logs import experiment
from tests.preprocess.test_bad_logs import good, write

NAMES = ["000000_0", "20240101_0012_00007_abcde_4f0c", "a.parq", "A.PARQUET", "a.parquet.snappy", "a b.csv", "é\n.x"]
OTHERS = [b"", b"a", b"row,user\n1,2\n", b"PAR", b"PAR2" + bytes(99) + b"PAR2"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for day in (1, 2):
        write(good(), tmp_path / f"log/day={day}/good.parquet")
    return tmp_path


def read(folder: Path, **logs: str) -> list[PartitionFiles]:
    sections = experiment(folder, logs={"splits": {"train": [1, 1], "test": [2, 2]}, **logs})
    return read_files(sections.logs, find_partitions(sections.logs).partitions)


def test_parquet_is_read_under_any_name(folder: Path) -> None:
    for name in NAMES:
        write(good(), folder / "log/day=1" / name)
    first = read(folder)[0]
    assert {file.path for file in first.files} == {f"day=1/{name}" for name in [*NAMES, "good.parquet"]}
    assert first.sizes.keys() == {file.path for file in first.files} and not first.unreadable


@pytest.mark.parametrize("content", OTHERS)
def test_other_files_are_not_read_and_named(folder: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "log/day=1/other").write_bytes(content)
    first = read(folder)[0]
    assert [file.path for file in first.files] == list(first.sizes) == ["day=1/good.parquet"]
    assert "day=1: not Parquet, so not read: day=1/other" in caplog.text


def test_a_cut_off_file_is_unreadable_under_any_name(folder: Path) -> None:
    (folder / "log/day=1/000000_0").write_bytes((folder / "log/day=1/good.parquet").read_bytes()[:-9])
    with pytest.raises(UserError, match=r"day=1/000000_0 cannot be read"):
        read(folder)
    assert read(folder, unreadable_files="skip")[0].unreadable == ["day=1/000000_0"]


def test_a_file_that_is_called_metadata_is_no_table(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "log/metadata").write_text("about this log")
    assert [len(partition.files) for partition in read(folder)] == [1, 1]
    assert "not in a folder day=VALUE, so not read: metadata" in caplog.text


@pytest.mark.parametrize("place", [".", "day=1", "day=1/deep"])
@pytest.mark.parametrize(
    ("mark", "name"),
    [("_delta_log/0.json", "a Delta"), (".hoodie/x", "a Hudi"), ("metadata/v1.metadata.json", "an Iceberg")],
)
def test_table_formats_are_refused(folder: Path, place: str, mark: str, name: str) -> None:
    file = folder / "log" / place / mark
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    with pytest.raises(UserError, match=rf"contains {name} table .*Export the current rows as plain Parquet"):
        read(folder)


def test_links_lead_to_each_real_file_once_and_never_up(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, outside = folder / "log/day=1", folder / "disk/part"
    write(good(), outside)
    write(good(), folder / "beside")
    (first / "a").symlink_to(outside)
    (first / "b").symlink_to(outside)  # the same file
    (first / "c").symlink_to("good.parquet")
    (first / "d").symlink_to("../day=2")
    (first / "e").symlink_to("nowhere")
    (first / "up").symlink_to("../..")
    (folder / "log/day=2/f").symlink_to(outside.parent)
    assert [[file.path for file in day.files] for day in read(folder)] == [
        ["day=1/a", "day=1/good.parquet"],
        ["day=2/good.parquet"],
    ]
    assert "links to files or folders of the log itself" in caplog.text and "day=1/b" in caplog.text


def test_the_log_and_a_partition_may_be_links(folder: Path) -> None:
    (folder / "log/day=1").rename(folder / "other")
    (folder / "log/day=1").symlink_to(folder / "other")
    (folder / "log").rename(folder / "real")
    (folder / "log").symlink_to("real")
    assert [len(day.files) for day in read(folder)] == [1, 1]


def test_what_is_beside_the_partition_folders_is_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(good(), folder / "log/stray.parquet")
    write(good(), folder / "log/archive/day=1/good.parquet")
    write(good(), folder / "log/_staging/good.parquet")
    assert [len(day.files) for day in read(folder)] == [1, 1]
    assert "not in a folder day=VALUE, so not read: archive, stray.parquet" in caplog.text


def test_links_that_lead_in_circles_end(folder: Path) -> None:
    first, outside = folder / "log/day=1", folder / "disk"
    write(good(), outside / "a/part")
    for place in (first, outside, outside / "a"):
        for name, target in (("up", ".."), ("here", "."), ("itself", "itself"), ("a1", folder / "disk/a")):
            (place / name).symlink_to(target)
    (first / "out").symlink_to(outside)
    (folder / "log/day=2/log").symlink_to(folder / "log")
    assert [[file.path for file in day.files] for day in read(folder)] == [
        ["day=1/a1/part", "day=1/good.parquet"],
        ["day=2/good.parquet"],
    ]
