"""What is counted of labels, so that a model can start from them. No test here needs Ray."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.experiment import Experiment
from pipeline.config.load import parse_experiment
from pipeline.preprocess.content import count_content
from pipeline.preprocess.discover import read_files
from pipeline.preprocess.encode import load_encoders
from pipeline.preprocess.partitions import find_partitions
from pipeline.preprocess.preprocess_plan import make_preprocess_plan
from pipeline.preprocess.rows import judge
from pipeline.preprocess.sampling import dropped_negatives
from pipeline.preprocess.transform import Transform, encode_rows
from pipeline.preprocess.units import UnitRows, all_columns, cut_units
from pipeline.sharding.model_inputs import label_summaries
from pipeline.table.content import Content, merged
from pipeline.table.content_report import report_content
from pipeline.table.manifest import LaneFile, Manifest, Partition, read_manifest, write_manifest

MADE: dict[str, list[Any]] = {
    "user": [1, 2, 3, 4, 5, 6],
    "click": [1, 1, 1, 0, 0, 0],
    "buy": [1, 0, None, 0, 1, 0],  # row 5 contradicts its click
    "spent": [3.0, 0.0, 8.0, 0.0, 2.0, 0.0],
    "weight": [1.0, 2.0, 4.0, 1.0, 1.0, 0.5],
}


def make(folder: Path, columns: dict[str, list[Any]], logs: dict[str, Any], **spent: Any) -> Experiment:
    file = folder / "log/day=1/part.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file, row_group_size=2)
    return parse_experiment(
        {
            "name": "test",
            "output": str(folder / "runs"),
            "logs": {
                "path": str(folder / "log"),
                "partition": "day",
                "splits": {"train": [1, 1]},
                "keys": ["user"],
                **logs,
            },
            "table": {"lanes": 2},
            "features": [{"name": "user", "column": "user", "kind": "categorical", "ids": {"hash": 9}, "dim": 2}],
            "scenarios": [{"name": "scene", "column": "user", "values": [1]}],
            "tasks": [
                {"name": "click", "column": "click", "kind": "binary"},
                {"name": "buy", "column": "buy", "kind": "binary", "after": "click", "missing": "skip"},
                {"name": "spent", "column": "spent", "kind": "continuous", "after": "click", **spent},
            ],
            "model": {"bottom": {"kind": "concat"}, "trunk": {"kind": "shared_bottom"}, "head": {"kind": "towers"}},
            "training": {"global_batch_size": 2},
            "evaluation": {"batch_size": 2},
        },
        "test",
    )


def manifest_of(of: Experiment) -> Manifest:
    """The manifest of a table with one partition, counted unit by unit."""
    sections = of.table_experiment
    (files,) = read_files(sections.logs, find_partitions(sections.logs, []).partitions)
    plan = make_preprocess_plan(sections, "no table", files.files)
    shared = Transform(plan, load_encoders(sections, "no table", 1))
    found, kept = [], 0
    for unit in cut_units(files):
        rows = UnitRows(plan, unit, all_columns(plan))
        verdict = judge(sections, plan.sources, rows)
        verdict.sample_out(dropped_negatives(sections, plan.sources, rows, verdict.kept))
        table, _ = encode_rows(shared, rows, verdict.kept)
        found.append(count_content(plan, rows, verdict, table))
        kept += len(verdict.kept)
    lanes = [[LaneFile("train/day=1/lane-000/unit-00000.parquet", kept, 1)], []]
    partition = Partition("train", "1", kept, 0, 0, lanes, content=merged(found))
    return Manifest("f", 2, 16, [], {}, [partition])


def content_of(manifest: Manifest) -> Content:
    content = manifest.partitions[0].content
    assert content is not None
    return content


@pytest.mark.parametrize("unit_rows", [1, 100])
def test_sums_are_weighted_and_on_the_training_scale(
    tmp_path: Path, unit_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.preprocess.units.UNIT_ROWS", unit_rows)
    of = make(tmp_path, MADE, {"weight": "weight"}, scale=0.5, transform="log1p")
    manifest = manifest_of(of)
    write_manifest(str(tmp_path), manifest)
    assert read_manifest(str(tmp_path)) == manifest
    tasks = content_of(manifest).tasks
    click, buy, spent = (tasks[name].sums for name in ("click", "buy", "spent"))
    assert click is not None and buy is not None and spent is not None
    assert (click.rows, click.weight, click.positive, click.sum) == (6, 9.5, 7.0, 7.0)
    assert (buy.rows, buy.weight, buy.positive) == (5, 5.5, 2.0)  # without the row that has no label
    after = tasks["buy"].after["click"]
    assert (after.rows, after.weight, after.positive, after.contradictions) == (2, 3.0, 1.0, 1)
    weights, labels = np.array(MADE["weight"]), np.log1p(np.array(MADE["spent"]) / 2)
    logs, of_positive = np.log(labels[labels > 0]), weights[labels > 0]
    sums = [weights.sum(), of_positive.sum(), weights @ labels, weights @ labels**2]
    sums += [of_positive @ logs, of_positive @ logs**2]
    found = [spent.weight, spent.positive, spent.sum, spent.squares, spent.log_sum, spent.log_squares]
    assert found == pytest.approx(sums, rel=1e-6)


def test_summaries_are_means_deviations_and_rates_between_0_and_1(tmp_path: Path) -> None:
    of = make(tmp_path, MADE, {})
    found = label_summaries(of, manifest_of(of))
    assert found["click"].rate == pytest.approx(3.5 / 7) and found["buy"].rate == pytest.approx(2.5 / 6)
    assert found["buy"].rate_after == pytest.approx(1.5 / 3)  # of the two clicks with a label, one bought
    labels = np.array(MADE["spent"])
    spent, logs = found["spent"], np.log(labels[labels > 0])
    values = [spent.mean, spent.deviation, spent.log_mean, spent.log_deviation]
    assert values == pytest.approx([labels.mean(), labels.std(), logs.mean(), logs.std()], rel=1e-6)
    all_zero = make(tmp_path / "zeros", {**MADE, "click": [0] * 6, "buy": [None] * 6, "spent": [0.0] * 6}, {})
    found = label_summaries(all_zero, manifest_of(all_zero))
    assert found["click"].rate == pytest.approx(0.5 / 7) and found.keys() == {"click", "spent"}
    assert (found["spent"].mean, found["spent"].log_mean, found["spent"].log_deviation) == (0, 0, 1)


def test_rates_are_those_of_the_log_before_negatives_were_sampled_out(tmp_path: Path) -> None:
    rows = 4000
    columns = {
        "user": list(range(rows)),
        "click": [int(n % 20 == 0) for n in range(rows)],
        "buy": [0] * rows,
        "spent": [0.0] * rows,
    }
    of = make(tmp_path, columns, {"negatives": {"task": "click", "keep": 0.1}})
    manifest = manifest_of(of)
    clicks = content_of(manifest).tasks["click"]
    assert clicks.labels < 800 and (clicks.labels - clicks.zeros) / clicks.labels > 0.25
    assert label_summaries(of, manifest)["click"].rate == pytest.approx(0.05, rel=0.15)


def test_another_after_uses_the_ratio_of_the_rates(tmp_path: Path) -> None:
    """`after` may change without a new table: the rows in which the other task happened were not counted then."""
    of = make(tmp_path, MADE, {})
    manifest = manifest_of(of)
    free = [of.tasks[0], of.tasks[1].model_copy(update={"after": None}), of.tasks[2]]
    assert label_summaries(of.model_copy(update={"tasks": free}), manifest)["buy"].rate_after == pytest.approx(2.5 / 6)
    tasks = {**content_of(manifest).tasks}
    tasks["buy"] = replace(tasks["buy"], after={})
    content = replace(content_of(manifest), tasks=tasks)
    other = replace(manifest, partitions=[replace(manifest.partitions[0], content=content)])
    assert label_summaries(of, other)["buy"].rate_after == pytest.approx((2.5 / 6) / (3.5 / 7))


def test_partitions_of_earlier_versions_are_left_out(tmp_path: Path) -> None:
    of = make(tmp_path, MADE, {})
    manifest = manifest_of(of)
    partition, content = manifest.partitions[0], content_of(manifest)
    uncounted = {name: replace(task, sums=None, after={}) for name, task in content.tasks.items()}
    earlier = [
        replace(partition, value="0", content=None),
        replace(partition, value="00", content=replace(content, tasks=uncounted)),
    ]
    assert label_summaries(of, replace(manifest, partitions=earlier)) == {}
    assert label_summaries(of, replace(manifest, partitions=[*earlier, partition])) == label_summaries(of, manifest)


def test_contradicting_labels_are_shown_and_reported(tmp_path: Path) -> None:
    of = make(tmp_path, MADE, {})
    manifest = manifest_of(of)
    lines = [" ".join(line.split()) for line in report_content(of.table_experiment, manifest).lines]
    assert "buy, labels 1 where click is 0 1" in lines
    text = "\n".join(report_content(of.table_experiment, manifest).remarks)
    assert "task buy: labels are 1 in rows in which click is 0: 1 of train (20.0%)." in text
    assert "task spent" not in text
    free = of.tasks[1].model_copy(update={"after": None})
    followed = of.model_copy(update={"tasks": [of.tasks[0], free, of.tasks[2]]}).table_experiment
    assert "labels are 1" not in "\n".join(report_content(followed, manifest).remarks)
    fixed = make(tmp_path / "fixed", {**MADE, "buy": [1, 0, 1, 0, 0, 0]}, {})
    assert "labels are 1" not in "\n".join(report_content(fixed.table_experiment, manifest_of(fixed)).remarks)
