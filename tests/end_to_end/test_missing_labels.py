"""`manygate preprocess` of a log whose second task has a label only after the first: refused, then as advised."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.commands import manygate
from tests.tiny import EXPERIMENT

ROWS = 60


def write_day(folder: Path, day: int) -> pa.Table:
    rng = np.random.default_rng(day)
    click = rng.random(ROWS) < 0.4
    buy = [bool(bought) if clicked else None for clicked, bought in zip(click, rng.random(ROWS) < 0.5, strict=True)]
    table = pa.table(
        {
            "row": range(100 * day, 100 * day + ROWS),
            "user_id": rng.integers(0, 9, ROWS),
            "tab": rng.integers(0, 2, ROWS),
            "is_click": click,
            "buy": pa.array(buy, pa.bool_()),
        }
    )
    path = folder / f"log/date={day}/part-0.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(table, path)
    return table


def test_labels_that_only_some_rows_have(tmp_path: Path, ray_is_up: None) -> None:
    log = pa.concat_tables([write_day(tmp_path, day) for day in (1, 2, 3)]).to_pandas().set_index("row")
    data = yaml.safe_load(EXPERIMENT)
    data["logs"] |= {"path": str(tmp_path / "log"), "keys": ["row"]}
    data["tasks"].append({"name": "buy", "column": "buy", "kind": "binary", "after": "click"})
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump({**data, "output": str(tmp_path / "runs"), "table": {"lanes": 4}}))

    refused = manygate("preprocess", str(file), check=2).err
    assert "label is missing" in refused and "set tasks.buy.missing to `skip`" in refused
    advised = ["tasks.buy.missing=skip", "logs.negatives={task: click, keep: 0.5}", "--overwrite"]
    printed = manygate("preprocess", str(file), *advised, check=0)
    assert "rows in which click is 0 has a label of it" in printed.err and "sampled out)" in printed.out

    files = (tmp_path / "runs/tiny/table").glob("*/date=*/lane-*/*.parquet")
    made = pa.concat_tables([pq.read_table(file, partitioning=None) for file in files]).to_pandas()
    made = made.set_index("key:row").sort_index()
    kept = log.loc[made.index]
    np.testing.assert_array_equal(made["label:click"], kept["is_click"].astype(np.float32))
    np.testing.assert_array_equal(made["label:buy"], kept["buy"].astype(np.float32))
    sampled = ~kept["is_click"] & (made.index < 300)
    np.testing.assert_array_equal(made["weight:buy"], np.where(sampled, 2, 1))
    lost = log.loc[log.index.difference(made.index)]
    assert len(lost) and not lost["is_click"].any() and (lost.index < 300).all()
