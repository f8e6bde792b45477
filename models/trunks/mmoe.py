"""Trunk `mmoe`: experts that all tasks share, a gate a task.

Ma et al., Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts, KDD 2018.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.inputs import ModelInputs
from models.layers.mlp import mlp
from models.layers.scenario import ScenarioEmbedding
from models.section import ModelSection, Widths
from models.trunks.output import TrunkOutput


class MMoEConfig(ModelSection):
    """Mixture of experts with one gate a task; experts and gates read the scenario beside the representation."""

    kind: Literal["mmoe"]
    experts: int = Field(default=8, ge=1)
    hidden: Widths = Field(default=[256, 128], min_length=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    scenario_dim: int = Field(default=8, ge=1)


class MMoETrunk(nn.Module):
    """``h_k = sum_i softmax(W_k z)_i f_i(z)`` with ``z = [x ‖ s]`` (equations 6 and 7)."""

    def __init__(self, inputs: ModelInputs, config: MMoEConfig, in_dim: int) -> None:
        super().__init__()
        self.scenario = ScenarioEmbedding(inputs.scenarios, config.scenario_dim)
        width = in_dim + self.scenario.dim
        self.experts = nn.ModuleList(mlp(width, config.hidden, config.dropout) for _ in range(config.experts))
        self.gates = nn.ModuleList(nn.Linear(width, config.experts, bias=False) for _ in inputs.tasks)
        self.out_dim = config.hidden[-1]

    def forward(self, representation: Tensor, scenarios: Tensor) -> TrunkOutput:
        """Representation ``(batch, in_dim)`` or ``(tasks, batch, in_dim)``, scenarios ``(batch, levels)``."""
        z = self.scenario.beside(representation, scenarios)
        outputs = torch.stack([expert(z) for expert in self.experts], dim=-2)  # (..., batch, experts, h)
        gates = torch.stack(
            [gate(z[k] if z.dim() == 3 else z).softmax(-1) for k, gate in enumerate(self.gates)]
        )  # (tasks, batch, experts)
        hidden = (gates.unsqueeze(-2) @ outputs.expand(len(self.gates), *outputs.shape[-3:])).squeeze(-2)
        return TrunkOutput(hidden, diagnostics={"gates": gates.detach()})
