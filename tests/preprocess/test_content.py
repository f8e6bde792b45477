"""The counts of a table's content, calculated by hand, and the remarks about it. No test here needs Ray."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.experiment import Experiment
from pipeline.config.load import parse_experiment
from pipeline.config.logs import TaskConfig
from pipeline.preprocess.content import count_content
from pipeline.preprocess.discover import read_files
from pipeline.preprocess.encode import load_encoders
from pipeline.preprocess.partitions import find_partitions
from pipeline.preprocess.preprocess_plan import make_preprocess_plan
from pipeline.preprocess.rows import judge
from pipeline.preprocess.transform import Transform, encode_rows
from pipeline.preprocess.units import UnitRows, all_columns, cut_units
from pipeline.table.content import Content, merged
from pipeline.table.content_report import report_content
from pipeline.table.content_text import percent
from pipeline.table.manifest import LaneFile, Manifest, Partition, read_manifest, write_manifest

PLACES = ["home", "home", "home", "search", "feed", None]
MADE: dict[str, list[Any]] = {
    "user": [1, 2, 3, 1, 9, 9],
    "place": PLACES,
    "click": [1, 0, 1, 1, 0, 0],
    "spent": [0.0, 2.5, -1.5, 8.0, 0.0, 1.0],
}


def make(folder: Path, columns: dict[str, list[Any]], **level: Any) -> Experiment:
    file = folder / "log/day=1/part.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file, row_group_size=2)
    pq.write_table(pa.table({"user": [1, 2], "city": [7, 8]}), folder / "side.parquet")
    scenario = {"name": "scene", "column": "place", "values": ["homme", "search"], **level}
    ids = {"kind": "categorical", "ids": {"hash": 9}, "dim": 2}
    return parse_experiment(
        {
            "name": "test",
            "output": str(folder / "runs"),
            "logs": {
                "path": str(folder / "log"),
                "partition": "day",
                "splits": {"train": [1, 1]},
                "joins": [{"path": str(folder / "side.parquet"), "key": "user"}],
                "max_quarantined": 1,
            },
            "table": {"lanes": 2},
            "features": [{"name": "user", "column": "user", **ids}, {"name": "city", "column": "city", **ids}],
            "scenarios": [scenario],
            "tasks": [
                {"name": "click", "column": "click", "kind": "binary"},
                {"name": "spent", "column": "spent", "kind": "continuous", "scale": 0.5, "loss": "ziln"},
            ],
            "model": {"bottom": {"kind": "concat"}, "trunk": {"kind": "shared_bottom"}, "head": {"kind": "towers"}},
            "training": {"global_batch_size": 2},
            "evaluation": {"batch_size": 2},
        },
        "test",
    )


def contents(of: Experiment) -> tuple[list[Content], int]:
    """The content of each unit, and the number of kept rows."""
    sections = of.table_experiment
    (files,) = read_files(sections.logs, find_partitions(sections.logs, []).partitions)
    plan = make_preprocess_plan(sections, "no table", files.files)
    shared = Transform(plan, load_encoders(sections, "no table", 1))
    found, kept = [], 0
    for unit in cut_units(files):
        rows = UnitRows(plan, unit, all_columns(plan))
        verdict = judge(sections, plan.sources, rows)
        table, _ = encode_rows(shared, rows, verdict.kept[::-1])
        found.append(count_content(plan, rows, verdict, table))
        kept += len(verdict.kept)
    return found, kept


def manifest_of(of: Experiment, content: Content, rows: int) -> Manifest:
    lanes = [[LaneFile("train/day=1/lane-000/unit-00000.parquet", rows, 1)], []]
    return Manifest("f", of.table.lanes, 16, [], {}, [Partition("train", "1", rows, 0, 0, lanes, content=content)])


@pytest.mark.parametrize("unit_rows", [1, 4, 100])
def test_the_counts_are_those_calculated_by_hand(
    tmp_path: Path, unit_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.preprocess.units.UNIT_ROWS", unit_rows)
    parts, kept = contents(make(tmp_path, MADE))
    content = merged(parts)
    assert kept == 5 and len(parts) == {1: 3, 4: 2, 100: 1}[unit_rows]
    scene = content.scenarios["scene"]
    assert scene.rows == {"search": 1, "other": 4} and scene.unlisted == {"home": 3, "feed": 1}
    assert sum(scene.rows.values()) == kept and scene.unlisted_rest == 0
    click, spent = content.tasks["click"], content.tasks["spent"]
    assert (click.labels, click.zeros, click.sum) == (5, 2, 3)
    assert (spent.labels, spent.zeros, spent.negative, spent.sum) == (5, 2, 1, 9.0)
    assert (spent.lowest, spent.highest) == (-1.5, 8.0)
    assert content.matched == [3]  # the side table has neither user 3 nor user 9


@pytest.mark.parametrize("unit_rows", [1, 100])
@pytest.mark.parametrize("extra", [{}, {"missing": "skip"}, {"only": {"scene": ["search", "other"]}}])
def test_labels_above_max_are_clipped_and_counted(
    tmp_path: Path, unit_rows: int, extra: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the row without a place, which is quarantined, nothing is counted. A label of 1e300 is clipped too."""
    monkeypatch.setattr("pipeline.preprocess.units.UNIT_ROWS", unit_rows)
    spent = [0.0, 2.5, -1.5, 8.0, 1e300, 9.0]
    of = make(tmp_path, {**MADE, "spent": spent})
    tasks = [of.tasks[0], TaskConfig.model_validate({**of.tasks[1].model_dump(), "max": 2.0, **extra})]
    of = of.model_copy(update={"tasks": tasks})
    parts, kept = contents(of)
    found = merged(parts).tasks["spent"]
    assert kept == 5 and (found.labels, found.clipped, found.highest, found.lowest) == (5, 3, 2.0, -1.5)
    assert found.sum == 0.0 + 2.0 - 1.5 + 2.0 + 2.0
    report = report_content(of.table_experiment, manifest_of(of, merged(parts), kept))
    assert re.search(r"spent, labels above `max` \(2\), clipped +3\b", "\n".join(report.lines))
    text = "\n".join(report.remarks)
    assert "task spent: most labels are above `max` (2) and were clipped to it: 60.0% of train" in text
    assert "It must be in the unit of 'spent'." in text


def test_without_max_nothing_is_clipped(tmp_path: Path) -> None:
    parts, _ = contents(make(tmp_path, MADE))
    assert merged(parts).tasks["spent"].clipped == 0


def test_values_that_are_filtered_out_are_counted_too(tmp_path: Path) -> None:
    (content,), kept = contents(make(tmp_path, MADE, other="drop"))
    scene = content.scenarios["scene"]
    assert kept == 1 and scene.rows == {"search": 1} and scene.unlisted == {"home": 3, "feed": 1}


def test_of_many_values_the_most_frequent_are_kept_and_no_row_is_lost(tmp_path: Path) -> None:
    rows = 3000
    places = [f"p{n % 1000 if n < 1500 else 7}" for n in range(rows)]
    columns = {"user": [1] * rows, "place": places, "click": [1] * rows, "spent": [0.0] * rows}
    (content,), kept = contents(make(tmp_path, columns))
    scene = merged([content], 20).scenarios["scene"]
    assert next(iter(scene.unlisted.items())) == ("p7", 1502) and len(scene.unlisted) == 20
    assert sum(scene.unlisted.values()) + scene.unlisted_rest == scene.rows["other"] == kept


def test_the_remarks_name_what_the_experiment_does_not_intend(tmp_path: Path) -> None:
    of = make(tmp_path, MADE)
    parts, kept = contents(of)
    manifest = manifest_of(of, merged(parts), kept)
    text = "\n".join(report_content(of.table_experiment, manifest).remarks)
    assert "(scene): no row has the value 'homme'. Did you mean 'home' (3 rows, now in scene=other)?" in text
    assert "fall into scene=other: 80.0% of train" in text
    assert "task spent: the column 'spent' has negative labels (1 in train), and the loss ziln takes only 0 or" in text
    assert "Set tasks.spent.loss to mse or huber" in text
    assert "2 lanes are too many" in text and "table.lanes=1" in text and "few rows have a row" not in text


def test_remarks_follow_their_advice(tmp_path: Path) -> None:
    of = make(tmp_path, MADE, values=["home", "search"])
    parts, kept = contents(of)
    tasks = [of.tasks[0], of.tasks[1].model_copy(update={"loss": "huber"})]
    followed = of.table_experiment.model_copy(update={"tasks": tasks})
    assert report_content(followed, replace(manifest_of(of, merged(parts), kept), lanes=1)).remarks == []


def test_constant_labels_and_few_matches_are_reported(tmp_path: Path) -> None:
    of = make(tmp_path, {**MADE, "user": [5] * 6, "click": [0] * 6}, values=["home", "search"])
    parts, kept = contents(of)
    text = "\n".join(report_content(of.table_experiment, manifest_of(of, merged(parts), kept)).remarks)
    assert "task click: every label of train is 0." in text and "(0% of train)" in text


def test_the_lines_and_the_manifest(tmp_path: Path) -> None:
    of = make(tmp_path, MADE)
    parts, kept = contents(of)
    manifest = manifest_of(of, merged(parts), kept)
    write_manifest(str(tmp_path), manifest)
    assert read_manifest(str(tmp_path)) == manifest
    lines = [" ".join(line.split()) for line in report_content(of.table_experiment, manifest).lines]
    for line in ("scene=homme 0 0%", "scene=other 4 80.0%", "click, share of 1 60.0%", "spent, mean 1.8",
                 "spent, negative labels 1", "side.parquet by user 60.0%"):  # fmt: skip
        assert line in lines
    sampled = replace(manifest, partitions=[replace(manifest.partitions[0], sampled_out=7)])
    note = report_content(of.table_experiment, sampled).lines[-1]
    assert note.startswith("The 7 negatives of train that logs.negatives left out are not counted")
    old = replace(manifest, partitions=[replace(manifest.partitions[0], content=None)])
    assert report_content(of.table_experiment, old).lines == []
    assert [percent(0, 9), percent(1, 9999), percent(9998, 9999), percent(9, 9)] == ["0%", "<0.1%", ">99.9%", "100%"]
