"""Targets that are quantiles of the label within groups of durations: the feature table, and the way back."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import rankdata

from pipeline.errors import UserError
from pipeline.evaluation.log_unit import log_units
from pipeline.evaluation.predictions import PredictedBatch
from pipeline.evaluation.split_metrics import Predictions
from pipeline.scoring.prediction_files import prediction_table
from pipeline.table.manifest import Manifest
from pipeline.table.target_quantiles import load_target_quantiles
from tests.preprocess.logs import experiment, read_split
from tests.preprocess.test_labels_and_weights import CLICK, TAB, USER, make, only_partition, write

WATCH: dict[str, Any] = {
    "name": "watch",
    "column": "play",
    "kind": "continuous",
    "quantiles_within": {"column": "length", "groups": 4},
}
ROWS = 400
SETTINGS: dict[str, Any] = {"features": [USER], "scenarios": [TAB]}


pytestmark = pytest.mark.usefixtures("without_ray")


def day(seed: int) -> dict[str, Any]:
    """Videos of 1 to 400 seconds that are watched for a random share; many for 0 seconds."""
    rng = np.random.default_rng(seed)
    length = rng.permutation(np.arange(1, ROWS + 1))
    play = np.where(rng.random(ROWS) < 0.3, 0, rng.integers(1, 1000, ROWS) * length)
    return {"row": np.arange(ROWS) + ROWS * seed, "play": play, "length": length.astype(float), "click": [1] * ROWS}


def made(folder: Path, task: dict[str, Any] = WATCH, **sections: Any) -> Manifest:
    for number in (1, 2):
        write(folder, number, day(number), group_rows=90)
    return make(folder, tasks=[CLICK, task], **sections)


def columns(folder: Path, manifest: Manifest, split: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Labels and references in the order of the log."""
    rows = read_split(folder / "table", manifest, split)
    return rows["label:watch"].to_numpy(), rows["reference:watch"].to_numpy()


@pytest.mark.parametrize("unit_rows", [90, 10**6])
def test_the_target_is_the_share_of_train_rows_of_like_duration_with_a_shorter_watch_time(
    tmp_path: Path, unit_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of 100 durations. Equal watch times have their mean rank, as in scipy."""
    monkeypatch.setattr("pipeline.preprocess.units.UNIT_ROWS", unit_rows)
    manifest = made(tmp_path)
    labels, references = columns(tmp_path, manifest, "train")
    log = day(1)
    np.testing.assert_array_equal(references, log["length"])
    for group in range(4):
        members = (log["length"] > 100 * group) & (log["length"] <= 100 * (group + 1))
        expected = (rankdata(log["play"][members]) - 0.5) / 100
        np.testing.assert_allclose(labels[members], expected, rtol=1e-6)


def test_other_splits_have_the_quantiles_of_train(tmp_path: Path) -> None:
    labels, _ = columns(tmp_path, made(tmp_path), "test")
    train, test = day(1), day(2)
    for group in range(4):
        low, high = 100 * group, 100 * (group + 1)
        known = train["play"][(train["length"] > low) & (train["length"] <= high)]
        points = np.unique(known)
        shares = [(np.sum(known < point) + np.sum(known == point) / 2) / 100 for point in points]
        members = (test["length"] > low) & (test["length"] <= high)
        expected = np.interp(test["play"][members], points, shares)
        np.testing.assert_allclose(labels[members], expected, rtol=1e-5)


def test_predictions_and_labels_are_watch_times(tmp_path: Path) -> None:
    manifest = made(tmp_path)
    labels, references = columns(tmp_path, manifest, "train")
    of = experiment(tmp_path, logs={"joins": []}, tasks=[CLICK, WATCH], **SETTINGS)
    quantiles = load_target_quantiles(of.table_experiment, str(tmp_path / "table"))
    ones = np.ones((ROWS, 1), np.float32)
    rows = Predictions(
        labels=np.hstack([ones, labels[:, None]]).astype(np.float32),
        predictions=np.hstack([ones, 0.5 * ones]),
        weights=ones[:, 0],
        scenarios=np.zeros((ROWS, 1), np.int32),
        references=np.hstack([ones, references[:, None]]).astype(np.float32),
    )
    table = prediction_table(PredictedBatch(rows, None, None), of, log_units(of.tasks, of.scenarios, {}, quantiles))  # type: ignore[arg-type]
    log = day(1)
    found = table["label_watch"].to_numpy()
    np.testing.assert_allclose(found, log["play"], rtol=1e-4, atol=0.01)
    # Of 100 rows, the quantile .5 is between the quantiles .495 and .505 of the 50th and the 51st watch time.
    medians = {group: np.median(log["play"][(log["length"] - 1) // 100 == group]) for group in range(4)}
    expected = [medians[(length - 1) // 100] for length in log["length"]]
    np.testing.assert_allclose(table["prediction_watch"].to_numpy(), expected, rtol=1e-6)


def test_the_content_is_counted_in_the_unit_of_the_log(tmp_path: Path) -> None:
    manifest = made(tmp_path, {**WATCH, "max": 50_000})
    content = only_partition(manifest).content
    play = day(1)["play"]
    assert content is not None
    found = content.tasks["watch"]
    assert found.zeros == np.sum(play == 0) > 0 and found.clipped == np.sum(play > 50_000) > 0
    assert found.sum == pytest.approx(np.minimum(play, 50_000).sum()) and found.highest == 50_000


def test_rows_without_a_usable_duration(tmp_path: Path) -> None:
    bad = [0.0, -1.0, math.nan, math.inf]
    for number in (1, 2):
        log = day(number)
        log["length"][:4] = bad
        write(tmp_path, number, log)
    partition = only_partition(make(tmp_path, tasks=[CLICK, WATCH]))
    what = "task watch: length (its quantiles_within.column)"
    assert partition.reasons == {f"{what} is 0 or negative": 2, f"{what} is missing": 1, f"{what} is infinite": 1}
    manifest = make(tmp_path, tasks=[CLICK, {**WATCH, "missing": "skip"}], overwrite=True)
    labels, references = columns(tmp_path, manifest, "train")
    # An infinite duration is missing too: the row has no label.
    assert np.flatnonzero(np.isnan(labels)).tolist() == np.flatnonzero(np.isnan(references)).tolist() == [0, 1, 2, 3]


def test_new_days_have_the_quantiles_of_the_first_fit(tmp_path: Path) -> None:
    first = columns(tmp_path, made(tmp_path), "train")
    quantiles = (tmp_path / "table/encoders/quantiles-watch.parquet").read_bytes()
    write(tmp_path, 3, day(3))
    manifest = make(tmp_path, tasks=[CLICK, WATCH], logs={"splits": {"train": [1, 1], "test": [2, 3]}})
    assert (tmp_path / "table/encoders/quantiles-watch.parquet").read_bytes() == quantiles
    np.testing.assert_array_equal(columns(tmp_path, manifest, "train")[0], first[0])
    assert len(columns(tmp_path, manifest, "test")[0]) == 2 * ROWS


def test_a_table_cannot_gain_such_a_task(tmp_path: Path) -> None:
    for number in (1, 2):
        write(tmp_path, number, day(number))
    make(tmp_path, tasks=[CLICK])
    with pytest.raises(UserError, match=r"task 'watch' has quantiles_within, .* rebuild the table with .*--overwrite"):
        make(tmp_path, tasks=[CLICK, WATCH])
    make(tmp_path, tasks=[CLICK, WATCH], overwrite=True)


def test_without_any_label_nothing_can_be_fitted(tmp_path: Path) -> None:
    for number in (1, 2):
        write(tmp_path, number, {**day(number), "play": np.full(ROWS, math.nan)})
    with pytest.raises(UserError, match=r"tasks\.watch\.quantiles_within: no row of the train split has a label"):
        make(tmp_path, tasks=[CLICK, {**WATCH, "missing": "skip"}])
