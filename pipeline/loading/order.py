"""The order of samples: pure arithmetic on the manifest, the same on every worker and for every number of workers.

A lane's rows of one epoch are its row groups in a seeded order, cut into windows of neighbouring groups, each window's
rows permuted. Global batch `s` takes rows `s * g` to `(s + 1) * g` of that order from every lane.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.table.manifest import Manifest

_NOISE = 1  # makes the generators of noise keys differ from those of the order


@dataclass(frozen=True)
class RowGroup:
    """One row group of one lane file."""

    path: str
    index: int
    rows: int


@dataclass(frozen=True)
class Window:
    """Row groups that are read and permuted together."""

    number: int
    groups: tuple[RowGroup, ...]

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.groups)


@dataclass(frozen=True)
class Shuffle:
    """Seed and range of the shuffle."""

    seed: int
    window_rows: int  # of one lane


def lane_groups(manifest: Manifest, split: str, lane: int) -> list[RowGroup]:
    """All row groups of a lane in the order of the table."""
    groups = []
    for partition in manifest.split(split):
        for file in partition.lanes[lane]:
            for index, start in enumerate(range(0, file.rows, manifest.row_group_rows)):
                groups.append(RowGroup(file.path, index, min(manifest.row_group_rows, file.rows - start)))
    return groups


def lane_rows(manifest: Manifest, split: str) -> list[int]:
    """Rows of each lane of a split."""
    rows = [0] * manifest.lanes
    for partition in manifest.split(split):
        for lane, files in enumerate(partition.lanes):
            rows[lane] += sum(file.rows for file in files)
    return rows


def epoch_windows(groups: list[RowGroup], shuffle: Shuffle | None, epoch: int, lane: int) -> list[Window]:
    """The windows of one lane in one epoch; without shuffle, one window per row group, in table order."""
    if shuffle is None:
        return [Window(number, (group,)) for number, group in enumerate(groups)]
    order = np.random.default_rng([shuffle.seed, epoch, lane]).permutation(len(groups))
    windows: list[Window] = []
    current: list[RowGroup] = []
    for i in order:
        current.append(groups[i])
        if sum(group.rows for group in current) >= shuffle.window_rows:
            windows.append(Window(len(windows), tuple(current)))
            current = []
    return windows + ([Window(len(windows), tuple(current))] if current else [])


def window_permutation(window: Window, shuffle: Shuffle, epoch: int, lane: int) -> np.ndarray:
    """Row order inside a window."""
    return np.random.default_rng([shuffle.seed, epoch, lane, window.number]).permutation(window.rows)


def steps_per_epoch(lanes: list[int], rows_per_lane: int) -> int:
    """Global batches per epoch: as many as the longest lane fills. Shorter lanes are padded."""
    return -(-max(lanes) // rows_per_lane)


def global_weight(lanes: list[int], rows_per_lane: int, step: int) -> int:
    """Rows of global batch number `step` that are not padding."""
    return sum(min(max(rows - step * rows_per_lane, 0), rows_per_lane) for rows in lanes)


def noise_keys(
    seed: tuple[int, int], epoch: int, lanes: list[int], first_row: int, steps: int, rows_per_lane: int
) -> np.ndarray:
    """Keys of the rows' random draws, ``(steps, lanes, rows_per_lane)`` int64, for rows of lanes from `first_row` on.

    The key of a row depends on the seed, the epoch, the lane and the row's number in the lane, not on the workers.
    """
    bases = [np.random.default_rng([*seed, epoch, lane, _NOISE]).integers(2**62) for lane in lanes]
    rows = first_row + np.arange(steps * rows_per_lane).reshape(steps, 1, rows_per_lane)
    return np.array(bases, dtype=np.int64)[:, None] + rows
