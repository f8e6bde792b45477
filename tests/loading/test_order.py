"""The order of samples: every row once per epoch, for any number of workers, from any position on."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.loading.order import (
    RowGroup,
    Shuffle,
    epoch_windows,
    global_weight,
    lane_groups,
    lane_rows,
    steps_per_epoch,
    window_permutation,
)
from pipeline.table.manifest import LaneFile, Manifest, Partition


def manifest(files: list[list[int]], row_group_rows: int) -> Manifest:
    """A manifest of one partition whose lanes have files of these rows."""
    lanes = [[LaneFile(f"{i}/{j}", rows, 0) for j, rows in enumerate(lane)] for i, lane in enumerate(files)]
    partition = Partition("train", "1", 0, 0, 0, lanes)
    return Manifest("f", len(files), row_group_rows, [], {}, [partition])


def test_row_groups_of_a_lane() -> None:
    table = manifest([[5, 4], []], row_group_rows=2)
    assert lane_groups(table, "train", 0) == [
        RowGroup("0/0", 0, 2),
        RowGroup("0/0", 1, 2),
        RowGroup("0/0", 2, 1),
        RowGroup("0/1", 0, 2),
        RowGroup("0/1", 1, 2),
    ]
    assert lane_groups(table, "train", 1) == []
    assert lane_rows(table, "train") == [9, 0]


@given(st.lists(st.integers(1, 40), max_size=20), st.integers(1, 100), st.integers(0, 5), st.integers(0, 3))
def test_windows_hold_every_group_once(sizes: list[int], window_rows: int, epoch: int, lane: int) -> None:
    groups = [RowGroup(str(i), 0, rows) for i, rows in enumerate(sizes)]
    shuffle = Shuffle(seed=7, window_rows=window_rows)
    windows = epoch_windows(groups, shuffle, epoch, lane)
    held = [group for window in windows for group in window.groups]
    assert sorted(held, key=lambda g: int(g.path)) == groups
    assert all(window.rows >= window_rows for window in windows[:-1])
    for window in windows:
        assert sorted(window_permutation(window, shuffle, epoch, lane)) == list(range(window.rows))


def test_order_changes_with_epoch_lane_and_seed_and_repeats_otherwise() -> None:
    groups = [RowGroup(str(i), 0, 10) for i in range(50)]

    def order(seed: int, epoch: int, lane: int) -> list[str]:
        return [g.path for w in epoch_windows(groups, Shuffle(seed, 30), epoch, lane) for g in w.groups]

    orders = [order(0, 0, 0), order(1, 0, 0), order(0, 1, 0), order(0, 0, 1)]
    assert len({tuple(o) for o in orders}) == 4
    assert order(0, 0, 0) == orders[0]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8).filter(any), st.integers(1, 12))
def test_global_weights_add_up_to_the_rows(lanes: list[int], rows_per_lane: int) -> None:
    steps = steps_per_epoch(lanes, rows_per_lane)
    weights = [global_weight(lanes, rows_per_lane, step) for step in range(steps)]
    assert sum(weights) == sum(lanes)
    assert weights[-1] > 0
    assert global_weight(lanes, rows_per_lane, steps) == 0
    assert np.all(np.diff(weights) <= 0)
