"""`manygate preprocess` of a log with a scenario in its paths, a behaviour as text, and a column that a day lacks."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.commands import manygate
from tests.tiny import EXPERIMENT

ROWS = 40


def write_day(folder: Path, day: int, **columns: Any) -> None:
    rng = np.random.default_rng(day)
    for scene in (0, 1):
        users = rng.integers(0, 9, (ROWS, 4)).astype(str)
        table = {
            "row": range(1000 * day + 100 * scene, 1000 * day + 100 * scene + ROWS),
            "user_id": users[:, 0],
            "seen": [", ".join(row[1:length]) for row, length in zip(users, rng.integers(1, 5, ROWS), strict=True)],
            "is_click": rng.random(ROWS) < 0.4,
            **columns,
        }
        path = folder / f"log/date={day}/scene={scene}/part-0.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table(table), path)


def test_columns_in_paths_behaviours_as_text_and_missing_columns(tmp_path: Path, ray_is_up: None) -> None:
    for day in (1, 2, 3):
        write_day(tmp_path, day, **({"price": [2.5] * ROWS} if day != 2 else {}))
    data = yaml.safe_load(EXPERIMENT)
    data["logs"] |= {"path": str(tmp_path / "log"), "keys": ["row", "scene"]}
    data["scenarios"] = [{"name": "scene", "column": "scene", "values": [0, 1]}]
    user = {"name": "user", "column": "user_id", "kind": "categorical", "ids": {"vocabulary": {}}, "dim": 4}
    seen = {"name": "seen", "column": "seen", "kind": "sequence", "shares": "user", "max_length": 2, "separator": ","}
    price = {"name": "price", "column": "price", "kind": "numeric", "encode": {"standardize": "identity"}}
    data["features"] = [user, seen, price]
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump({**data, "output": str(tmp_path / "runs"), "table": {"lanes": 2}}))

    refused = manygate("preprocess", str(file), check=2).err
    assert "date=2/scene=0/part-0.parquet has no column 'price'" in refused and "logs.missing_columns=null" in refused
    printed = manygate("preprocess", str(file), "logs.missing_columns=null", check=0)
    assert f"'price' is null in {2 * ROWS} rows, because 2 of the 6 files" in printed.err
    table = tmp_path / "runs/tiny/table"
    assert f"Column price is null in {2 * ROWS} rows" in manygate("inspect", str(table), check=0).out

    files = [path for path in table.glob("*/date=*/lane-*/*.parquet") if path.parts[-4] != "quarantine"]
    made = pa.concat_tables([pq.read_table(path, partitioning=None) for path in files]).to_pandas()
    assert len(made) == 3 * 2 * ROWS
    np.testing.assert_array_equal(made["key:scene"], made["key:row"] // 100 % 10)
    np.testing.assert_array_equal(made["scenario:scene"], made["key:scene"])
    names = pq.read_table(table / "encoders/user.parquet", partitioning=None)["value"].to_pylist()
    sources = {
        row["row"]: row
        for path in (tmp_path / "log").rglob("*.parquet")
        for row in pq.ParquetFile(path).read().to_pylist()
    }
    for row in made.to_dict("records"):
        expected = [part.strip() for part in sources[row["key:row"]]["seen"].split(",") if part][-2:]
        assert [names[number - 2] for number in row["seen"]] == expected
