"""The synthetic log: reproducible, with the promised content, and readable by its experiment."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from examples.synthetic.generate import MISSING, Settings, World, generate, make_rows
from pipeline.config.load import load_experiment
from pipeline.preprocess.job import preprocess

SMALL = Settings("unused", rows=20_000, categoricals=4, ids=200, scenarios=3)


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    return make_rows(SMALL, World(SMALL), file=2, rows=20_000)


def test_rows_follow_from_seed_and_file(rows: pa.Table) -> None:
    assert make_rows(SMALL, World(SMALL), 2, 20_000).equals(rows)
    assert not make_rows(SMALL, World(SMALL), 3, 20_000).equals(rows)
    other = Settings("unused", rows=20_000, categoricals=4, ids=200, scenarios=3, seed=1)
    assert not make_rows(other, World(other), 2, 20_000).equals(rows)


@pytest.mark.parametrize(("rows", "days"), [(7, 7), (1_001, 10), (600_000, 2), (250_000, 1)])
def test_files_contain_all_rows_and_every_day_has_a_file(rows: int, days: int) -> None:
    files = Settings("unused", rows=rows, days=days).files
    assert sum(count for count, _ in files) == rows
    assert {day for _, day in files} == set(range(days)) and all(count for count, _ in files)


def test_ids_follow_the_law_and_numbers_are_missing_at_the_documented_rate(rows: pa.Table) -> None:
    law = 1 / np.arange(1, 201) ** SMALL.zipf
    counts = {item["values"]: item["counts"] for item in pc.value_counts(rows["c01"].cast("string")).to_pylist()}
    for rank in (0, 1, 5):
        share = law[rank] / law.sum()
        assert counts[f"00-{rank:06x}"] / 20_000 == pytest.approx(share, abs=4 * (share / 20_000) ** 0.5)
    assert rows["n01"].null_count / 20_000 == pytest.approx(MISSING, abs=0.01)


def test_the_planted_effects_show_in_the_labels(rows: pa.Table) -> None:
    click, buy, watched = (rows[name].to_numpy() for name in ("click", "buy", "watch_ms"))
    assert not buy[click == 0].any() and not watched[click == 0].any()
    world = World(SMALL)
    ids = np.stack([np.array([int(text[3:], 16) for text in rows[f"c{i:02d}"].to_pylist()]) for i in range(1, 5)])
    scenario = rows["channel"].to_numpy()

    def score(of: np.ndarray) -> np.ndarray:
        return sum(world.weights[of, i] * world.effects[0, i][ids[i]] for i in range(4))

    own, other = score(scenario), score((scenario + 1) % 3)
    assert click[own > np.median(own)].mean() > click[own <= np.median(own)].mean() + 0.1
    assert np.corrcoef(own, click)[0, 1] > np.corrcoef(other, click)[0, 1] + 0.02


def test_the_synthetic_experiment_reads_the_log(tmp_path: Path, ray_is_up: None) -> None:
    assert generate(Settings(str(tmp_path / "log"), rows=3_000)) == 3_000
    experiment = load_experiment("examples/synthetic/experiment.yaml", [f"logs.path={tmp_path / 'log'}"])
    manifest = preprocess(experiment, str(tmp_path / "table"))
    assert sum(partition.kept for partition in manifest.partitions) == 3_000
