"""Noise keyed by row: its distribution, and equality in every batch."""

import numpy as np
import torch
from scipy import stats

from models.layers.noise import gumbel, normal
from pipeline.loading.order import noise_keys

SHAPE = torch.Size((2, 4000, 3, 5))


def test_draws_are_standard_normal_and_do_not_correlate() -> None:
    keys = torch.from_numpy(noise_keys((0, 0), 0, [3], 17, 1, 4000).ravel())
    drawn = [normal(keys, number, SHAPE).numpy() for number in range(3)]
    assert stats.kstest(drawn[0].ravel(), "norm").pvalue > 0.01
    assert stats.kstest(gumbel(keys, 3, SHAPE).numpy().ravel(), "gumbel_r").pvalue > 0.01
    flat = [numbers.ravel() for numbers in drawn]
    correlation = np.corrcoef([*flat, np.roll(flat[0], 1), np.roll(flat[0], 15)])
    assert np.abs(correlation - np.eye(len(correlation))).max() < 0.02
    positions = drawn[0].transpose(1, 0, 2, 3).reshape(4000, -1)
    assert np.abs(np.corrcoef(positions.T) - np.eye(30)).max() < 0.08


def test_the_draws_of_a_row_do_not_depend_on_other_rows() -> None:
    keys = torch.randint(-(2**62), 2**62, (10,), generator=torch.Generator().manual_seed(0))
    whole = normal(keys, 1, torch.Size((2, 10, 4)))
    some = torch.tensor([7, 2, 9])
    assert torch.equal(normal(keys[some], 1, torch.Size((2, 3, 4))), whole[:, some])
    assert not torch.equal(normal(keys, 2, torch.Size((2, 10, 4))), whole)


def test_extreme_keys_give_finite_numbers() -> None:
    keys = torch.tensor([0, -1, 2**63 - 1, -(2**63)])
    for draw in (normal, gumbel):
        drawn = draw(keys, 0, torch.Size((1, 4, 100_000)))
        assert drawn.isfinite().all() and 4 < drawn.abs().max() < 18


def test_keys_depend_on_seed_epoch_and_lane_and_not_on_the_workers() -> None:
    """Rows 6..11 of lanes 0 to 3: two workers have the keys that one worker has for their lanes; no key repeats."""
    one = noise_keys((5, 0), 1, [0, 1, 2, 3], 6, 2, 3)
    assert one.shape == (2, 4, 3)
    assert (noise_keys((5, 0), 1, [1, 3], 6, 2, 3) == one[:, 1::2]).all()
    assert (noise_keys((5, 0), 1, [0, 1, 2, 3], 9, 1, 3) == one[1:]).all()
    others = [one, noise_keys((4, 0), 1, [0, 1], 6, 2, 3), noise_keys((5, 0), 0, [0, 1], 6, 2, 3)]
    others.append(noise_keys((5, 12), 1, [0, 1], 6, 2, 3))
    everything = np.concatenate([keys.ravel() for keys in others])
    assert len(set(everything.tolist())) == len(everything)
