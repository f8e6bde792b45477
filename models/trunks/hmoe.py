"""Trunk `hmoe`: one gate per scenario mixes experts; then scenarios are mixed in the label space, without gradients to
other scenarios.

Li et al., Improving Multi-Scenario Learning to Rank in E-commerce by Exploiting Task Relationships in the Label Space
(HMoE), CIKM 2020.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.config import HMoEConfig
from models.inputs import ModelInputs
from models.labels import expert_names, label
from models.layers.grouped import GroupedLinear, GroupedMLP, Groups
from models.layers.scenario import FinestScenario
from models.trunks.base import Context, Trunk, TrunkOutput


class HMoETrunk(Trunk):
    """For a row of scenario i, where ``o_j`` is the tower of scenario j on its mixture of the experts:

        o'_i = w_ii o_i + sum_{j != i} w_ij sg(o_j),    w_i = softmax(V_i x)

    The labels of a row train the gate and tower of its own scenario and the weights w_i, never another scenario's gate
    or tower. This trunk mixes hidden vectors, from which the head computes a logit; the paper mixes the scores.
    Tasks: each has a separate model, as in the AESM2 paper's extension of HMoE; they share only the embedding.
    """

    has_experts = True
    keeps_predictions = frozenset({"task"})  # a row uses the towers of all scenarios

    def __init__(self, inputs: ModelInputs, config: HMoEConfig, in_dim: int) -> None:
        super().__init__()
        self._tasks = len(inputs.tasks)
        self._finest = FinestScenario(inputs.scenarios)
        self.models = nn.ModuleDict({name: _HMoE(self._finest.labels, config, in_dim) for name in inputs.task_names})
        self.out_dim = config.tower[-1]

    def forward(self, representation: Tensor, context: Context) -> TrunkOutput:
        """Takes a representation ``(batch, in_dim)`` or ``(tasks, batch, in_dim)``."""
        scenario = self._finest(context.scenarios)
        groups = Groups.of(scenario, self._finest.count)
        inputs = representation.expand(self._tasks, -1, -1)
        outputs = [model(x, scenario, groups) for model, x in zip(self.models.values(), inputs, strict=True)]
        experts = {"experts": torch.stack([shares for _, shares in outputs])}
        return TrunkOutput(torch.stack([hidden for hidden, _ in outputs]), experts=experts)


class _HMoE(nn.Module):
    """The model of one task."""

    def __init__(self, scenarios: Sequence[str], config: HMoEConfig, in_dim: int) -> None:
        super().__init__()
        self.experts = GroupedMLP(expert_names(config.experts), in_dim, config.hidden, config.dropout)
        self.gates = GroupedLinear(scenarios, in_dim, config.experts, is_gate=True)
        self.towers = GroupedMLP(scenarios, config.hidden[-1], config.tower, config.dropout)
        self.mixing = GroupedLinear(scenarios, in_dim, len(scenarios), is_gate=True)
        label(self.mixing, "weight", 2, scenarios)

    def forward(self, x: Tensor, scenario: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
        """Maps ``(batch, in_dim)`` to hidden ``(batch, h)``.

        Also returns the shares of the gate of each row's own scenario, ``(batch, experts)``, detached.
        """
        rows = torch.arange(len(x), device=x.device)
        sorted_x = groups.gather(x)
        gate = groups.scatter(self.gates.ragged(sorted_x, groups.sizes)).softmax(-1)
        outputs = self.experts(x)  # (experts, batch, h)
        own = torch.einsum("be,ebh->bh", gate.to(outputs.dtype), outputs)
        own = groups.scatter(self.towers.ragged(groups.gather(own), groups.sizes))
        with torch.no_grad():  # the stop-gradient: other scenarios' towers are used but need no backward
            others = self.towers(torch.einsum("jbe,ebh->jbh", self.gates(x).softmax(-1).to(outputs.dtype), outputs))
            others = others.transpose(0, 1).contiguous()  # (batch, scenarios, h)
            others[rows, scenario] = 0
        mix = groups.scatter(self.mixing.ragged(sorted_x, groups.sizes)).softmax(-1).to(own.dtype)
        hidden = mix[rows, scenario].unsqueeze(1) * own + torch.einsum("bj,bjh->bh", mix, others)
        return hidden, gate.detach()
