"""Several days of a run, with the commands that a person types: new days, then a new scenario and a new task."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.config.load import dump_experiment, load_experiment
from tests.commands import manygate

OVERRIDES = ["training.max_steps=4", "training.log_every_steps=2", "checkpoint={every_steps: 100}"]
FIRST = {"train": [20220425, 20220425], "valid": [20220426, 20220426], "test": [20220504, 20220504]}
SECOND = {"train": [20220425, 20220426], "valid": [20220504, 20220504], "test": [20220505, 20220505]}


@pytest.fixture
def file(sliced: Path, tmp_path: Path) -> Path:
    """A separate experiment over the slice of the logs, whose vocabularies are extended."""
    experiment = load_experiment(sliced, [f"output={tmp_path}", "name=daily", "table.encoders=extend", *OVERRIDES])
    file = tmp_path / "experiment.yaml"
    file.write_text(dump_experiment(experiment))
    return file


def change(file: Path, **sections: Any) -> None:
    data = yaml.safe_load(file.read_text())
    for name, value in sections.items():
        data[name] = {**data[name], **value} if isinstance(value, dict) else value
    file.write_text(yaml.safe_dump(data, sort_keys=False))


def test_the_same_commands_every_day(file: Path) -> None:
    change(file, logs={"splits": FIRST})
    manygate("preprocess", str(file), check=0)
    manygate("train", str(file), check=0)
    folder = Path(load_experiment(file).folder)
    videos = pq.read_table(folder / "table/encoders/video.parquet")["value"].to_pylist()

    change(file, logs={"splits": SECOND})
    assert "Run `manygate preprocess` again" in manygate("train", str(file), check=2).err
    printed = manygate("preprocess", str(file), check=0).err
    assert "date=20220426 moves from `valid` to `train`: it is rebuilt" in printed
    extended = pq.read_table(folder / "table/encoders/generation-00002/video.parquet")["value"].to_pylist()
    assert extended[: len(videos)] == videos and len(extended) > len(videos)
    printed = manygate("train", str(file), check=0).err
    assert (
        "Continuing with the new partitions of the train split: 20220426; the schedule starts again." in printed
        and "step 8/8" in printed
    )
    assert f"the embedding table video: {len(videos) + 2:,} -> {len(extended) + 2:,} rows" in printed

    data = yaml.safe_load(file.read_text())
    data["scenarios"][0]["values"].append(8)
    like = {"name": "like", "column": "is_like", "kind": "binary", "after": "click"}
    change(file, scenarios=data["scenarios"], tasks=[*data["tasks"], like])
    assert "the experiment has gained tab=8, task like" in manygate("preprocess", str(file), check=0).err
    assert "does not contain tab=8, task like" in manygate("evaluate", str(file), check=2).err
    printed = manygate("train", str(file), check=0).err
    assert "grown by tab=8, task like." in printed and "dense.model.head.towers.like.1.weight: new" in printed
    assert (
        "Continuing with the new partitions of the train split: 20220425, 20220426; the schedule starts again."
        in printed
    )
    assert "step 12/12" in printed
    manygate("evaluate", str(file), check=0)
    evaluation = json.loads((folder / "evaluation-test.json").read_text())
    assert evaluation["tasks"].keys() == {
        *("click", "long_view", "watch_time", "like"),
        *("long_view_given_click", "like_given_click"),
    }
    assert "tab=8" in evaluation["tasks"]["click"]["scenarios"]
