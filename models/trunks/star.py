"""Trunk `star`: the weights of a scenario are shared weights times its own weights; likewise for the tasks.

Sheng et al., One Model to Serve All: Star Topology Adaptive Recommender (STAR), CIKM 2021.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.config import STARConfig
from models.inputs import ModelInputs
from models.labels import label_outputs
from models.layers.grouped import GroupedLinear, GroupedMLP, Groups
from models.layers.mlp import Units, mlp
from models.layers.partitioned_norm import PartitionedNorm
from models.layers.scenario import FinestScenario, ScenarioEmbedding
from models.trunks.base import Context, Trunk, TrunkOutput
from models.weight_decay import spare


class StarLinear(GroupedLinear):
    """``W_p* = W_p ⊗ W``, ``b_p* = b_p + b`` (equations 4 and 5); every W_p starts as ones and every b_p as zeros.

    W is initialised like `nn.Linear`: its input is normalised, and larger initial weights learned worse.
    """

    def __init__(self, groups: Sequence[str], in_dim: int, out_dim: int) -> None:
        super().__init__(groups, in_dim, out_dim)
        nn.init.ones_(self.weight)
        spare(self, "weight")
        self.shared = nn.Linear(in_dim, out_dim)

    def weights(self) -> tuple[Tensor, Tensor | None]:
        assert self.bias is not None
        return self.weight * self.shared.weight.T, self.bias + self.shared.bias


class StarMLP(GroupedMLP):
    """ReLU network of `StarLinear` layers."""

    make_layer = StarLinear


class STARTrunk(Trunk):
    """``h = star over tasks( star over scenarios( PN(x) ) )``; the auxiliary network's ``s_a`` is added to the logit.

    Scenarios: the finest ones; each row uses the weights of its own scenario. Tasks: the AESM2 paper extends STAR with
    a second star, over the tasks. The auxiliary network reads the representation and the scenario's embedding, and has
    one output unit per task.
    """

    def __init__(self, inputs: ModelInputs, config: STARConfig, in_dim: int) -> None:
        super().__init__()
        self._tasks = len(inputs.tasks)
        self._finest = FinestScenario(inputs.scenarios)
        scenarios = self._finest.labels
        self.norm = PartitionedNorm(scenarios, in_dim, config.momentum)
        self.scenario_star = StarMLP(scenarios, in_dim, config.hidden, config.dropout)
        self.task_star = StarMLP(inputs.task_names, config.hidden[-1], config.task_hidden, config.dropout)
        self.scenario = ScenarioEmbedding(inputs.scenarios, config.scenario_dim)
        hidden = mlp(in_dim + self.scenario.dim, [config.auxiliary])
        units = Units(config.auxiliary, self._tasks)
        label_outputs(units, inputs.task_names)
        nn.init.zeros_(units.bias)  # the head's own units start at the rates of the tasks
        self.auxiliary = nn.Sequential(hidden, units)
        self.out_dim = config.task_hidden[-1]

    def forward(self, representation: Tensor, context: Context) -> TrunkOutput:
        """Takes a representation ``(batch, in_dim)`` or ``(tasks, batch, in_dim)``."""
        inputs = representation.unsqueeze(0) if representation.dim() == 2 else representation
        copies, batch, width = inputs.shape
        scenario = self._finest(context.scenarios)
        x = self.norm(inputs, scenario, context.weights, context.total).view(-1, width)
        groups = Groups.of(scenario.repeat(copies), self._finest.count)
        x = groups.scatter(self.scenario_star.ragged(groups.gather(x), groups.sizes))
        hidden = self.task_star(x.view(copies, batch, -1).expand(self._tasks, -1, -1))
        units = self.auxiliary(self.scenario.append_to(inputs, context.scenarios))  # (copies, batch, tasks)
        logits = torch.diagonal(units.expand(self._tasks, -1, -1), dim1=0, dim2=2).T
        return TrunkOutput(hidden, logits=logits)
