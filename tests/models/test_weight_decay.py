"""Which parameters of the dense part have weight decay."""

from fnmatch import fnmatch
from itertools import product

import pytest
import torch

from models.config import ObjectiveConfig
from models.objective import Objective
from models.weight_decay import spared_parameters
from tests.models.parts import BOTTOMS, SMALL, TASKS, dense

SPARED = (
    "*bias",  # of all layers, also of grouped ones
    "trunk.norm.gamma",
    "trunk.norm.beta",
    "trunk.norm.scenario_gamma",
    "trunk.norm.scenario_beta",
    "trunk.scenario_star.layers.?.weight",
    "trunk.task_star.layers.?.weight",
    "trunk.stitches.?",
)
TOWARDS_THE_IDENTITY = ("bottom.interest.norms.weight", "bottom.refine.second.weight")
"""They start at zero, where they change nothing: their factors are 1 + W h and 2 sigmoid(W h)."""


@pytest.mark.parametrize(("bottom", "kind"), product(BOTTOMS, SMALL))
def test_biases_and_factors_are_spared_and_nothing_else(bottom: str, kind: str) -> None:
    model = dense(bottom, kind)
    spared = spared_parameters(model)
    for name, parameter in model.named_parameters():
        assert (name in spared) is any(fnmatch(name, pattern) for pattern in SPARED), name
        if bool((parameter == parameter.flatten()[0]).all()) and parameter.numel() > 1:  # starts as zeros or as ones
            assert name in spared or name in TOWARDS_THE_IDENTITY, name
    assert spared <= {name for name, _ in model.named_parameters()}


def test_logarithms_of_variances_are_spared() -> None:
    objective = Objective(TASKS, ObjectiveConfig(weighting="uncertainty"))
    assert spared_parameters(objective) == {"log_variances"}


def test_cross_stitch_units_start_as_mixtures_and_are_spared() -> None:
    model = dense("concat", "cross_stitch")
    stitches = {name for name, p in model.named_parameters() if torch.allclose(p.sum(-1), torch.ones(p.shape[:-1]))}
    assert stitches and stitches <= spared_parameters(model)
