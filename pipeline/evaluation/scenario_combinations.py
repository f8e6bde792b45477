"""Combinations of scenarios as single numbers, and their labels."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.config.logs import ScenarioConfig


def combination_codes(scenarios: NDArray[np.integer], levels: Sequence[ScenarioConfig]) -> NDArray[np.intp]:
    """One number per combination of the scenarios of the first levels, ``(rows,)``.

    Args:
        scenarios: ``(rows, levels)``, indices into `ScenarioConfig.labels`.
        levels: all levels or the first of them.
    """
    shape = [len(level.labels) for level in levels]
    return np.ravel_multi_index(tuple(scenarios[:, : len(levels)].T), shape)


def combination_labels(codes: NDArray[np.intp], levels: Sequence[ScenarioConfig]) -> list[str]:
    """The labels of combinations, such as ``tab=1/user=new``."""
    index_of_level = zip(*np.unravel_index(codes, [len(level.labels) for level in levels]), strict=True)
    return ["/".join(level.labels[i] for level, i in zip(levels, index, strict=True)) for index in index_of_level]
