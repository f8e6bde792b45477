"""Trunk `cross_stitch`: one network per task; learned scalars mix their layers.

Misra et al., Cross-stitch Networks for Multi-task Learning, CVPR 2016.
"""

from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from models.config import CrossStitchConfig
from models.inputs import ModelInputs
from models.labels import label
from models.layers.grouped import GroupedLinear
from models.layers.scenario import ScenarioEmbedding
from models.trunks.base import Context, Trunk, TrunkOutput
from models.weight_decay import spare


class CrossStitchTrunk(Trunk):
    """After each layer ``x~_j = sum_k alpha_jk x_k``, with the same alpha for all rows (section 3 of the paper).

    Scenarios: all rows train the same networks, and the scenario is an input of each network.
    """

    keeps_predictions = frozenset({"scenario"})  # every task reads the layers of all tasks

    def __init__(self, inputs: ModelInputs, config: CrossStitchConfig, in_dim: int) -> None:
        super().__init__()
        names, tasks = inputs.task_names, len(inputs.tasks)
        self._dropout = config.dropout
        self.scenario = ScenarioEmbedding(inputs.scenarios, config.scenario_dim)
        widths = [in_dim + self.scenario.dim, *config.hidden]
        self.layers = nn.ModuleList(GroupedLinear(names, a, b) for a, b in zip(widths, widths[1:], strict=False))
        start = torch.eye(tasks)
        if tasks > 1:
            start = torch.full((tasks, tasks), (1 - config.own) / (tasks - 1)).fill_diagonal_(config.own)
        self.stitches = nn.ParameterList(start.clone() for _ in config.hidden)
        for layer, axis in product(range(len(self.stitches)), (0, 1)):
            label(self.stitches, str(layer), axis, names)
        spare(self.stitches, *map(str, range(len(self.stitches))))
        self.out_dim = config.hidden[-1]

    def forward(self, representation: Tensor, context: Context) -> TrunkOutput:
        """Takes a representation ``(batch, in_dim)`` or ``(tasks, batch, in_dim)``."""
        x = self.scenario.append_to(representation, context.scenarios)
        for layer, alpha in zip(self.layers, self.stitches, strict=True):
            x = dropout(layer(x).relu(), self._dropout, self.training)
            x = torch.einsum("jk,kbd->jbd", alpha.to(x.dtype), x)
        return TrunkOutput(x)
