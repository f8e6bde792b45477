"""Preprocessing and training on tags with weights: the hint, its advice, and quarantined weights."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline.table.manifest import ID_WEIGHTS, read_manifest
from tests.commands import manygate
from tests.tiny import EXPERIMENT

ROWS = 60


def write_day(folder: Path, day: int) -> dict[int, str]:
    rng = np.random.default_rng(day)
    tags = ["|".join(f"t{k}:{rng.random():.4f}" for k in rng.integers(0, 5, rng.integers(0, 4))) for _ in range(ROWS)]
    if day == 2:
        tags[7] = "t1:0.5|t2:much"
    table = pa.table(
        {
            "row": range(100 * day, 100 * day + ROWS),
            "user_id": rng.integers(0, 9, ROWS),
            "tab": rng.integers(0, 2, ROWS),
            "is_click": rng.random(ROWS) < 0.4,
            "tags": tags,
        }
    )
    path = folder / f"log/date={day}/part-0.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(table, path)
    return dict(zip(table["row"].to_pylist(), tags, strict=True))


def test_tags_with_weights(tmp_path: Path, ray_is_up: None) -> None:
    texts = {row: text for day in (1, 2, 3) for row, text in write_day(tmp_path, day).items()}
    data = yaml.safe_load(EXPERIMENT)
    data["logs"] |= {"path": str(tmp_path / "log"), "keys": ["row"], "max_quarantined": 0.1}
    tags = {"name": "tags", "column": "tags", "kind": "multivalued", "separator": "|"}
    data["features"].append({**tags, "ids": {"vocabulary": {}}, "dim": 4})
    data["training"] = {"global_batch_size": 16, "epochs": 1, "device": "cpu", "log_every_steps": 2}
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump({**data, "output": str(tmp_path / "runs"), "table": {"lanes": 4}}))
    place = len(data["features"]) - 1

    hint = manygate("preprocess", str(file), check=0).err
    assert hint.count("look like `id:weight`") == 1 and f"Set features.{place}.weights to ':'" in hint
    advised = f"features.{place}.weights=':'"
    refused = manygate("preprocess", str(file), advised, check=2).err
    assert "weights" in refused and "--overwrite" in refused
    made = manygate("preprocess", str(file), advised, "--overwrite", check=0)
    assert "look like" not in made.err and "feature tags: a weight is not a number (1)" in made.err

    table = tmp_path / "runs/tiny/table"
    manifest = read_manifest(str(table))
    assert manifest.table_rows["tags"] == 2 + 5  # missing, unknown, t0 to t4
    files = [file.path for p in manifest.partitions for lane in p.lanes for file in lane]
    rows = pa.concat_tables([pq.read_table(table / path, partitioning=None) for path in files]).to_pylist()
    assert {row["key:row"] for row in rows} == texts.keys() - {207}
    names: dict[str, int] = {}
    for row in rows:
        parts = [part.split(":") for part in texts[row["key:row"]].split("|") if part]
        assert row[ID_WEIGHTS + "tags"] == [np.float32(weight) for _, weight in parts]
        assert [names.setdefault(name, id_) for (name, _), id_ in zip(parts, row["tags"], strict=True)] == row["tags"]
    assert len(set(names.values())) == 5

    manygate("train", str(file), advised, check=0)
    lines = (tmp_path / "runs/tiny/metrics.jsonl").read_text().splitlines()
    assert all("NaN" not in line for line in lines) and max(json.loads(line)["step"] for line in lines) > 4
