"""Trunk `mmoe`: experts that all tasks share, and one gate per task.

Ma et al., Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts, KDD 2018.
"""

from torch import Tensor

from models.config import MMoEConfig
from models.inputs import ModelInputs
from models.labels import expert_names
from models.layers.experts import mixture
from models.layers.grouped import GroupedLinear, GroupedMLP
from models.layers.scenario import ScenarioEmbedding
from models.trunks.base import Context, Trunk, TrunkOutput


class MMoETrunk(Trunk):
    """``h_k = sum_i softmax(W_k z)_i f_i(z)`` with ``z = [x ‖ s]`` (equations 6 and 7).

    Scenarios: all rows train the same experts, and the scenario is an input of the experts and the gates.
    """

    has_experts = True

    def __init__(self, inputs: ModelInputs, config: MMoEConfig, in_dim: int) -> None:
        super().__init__()
        self.scenario = ScenarioEmbedding(inputs.scenarios, config.scenario_dim)
        width = in_dim + self.scenario.dim
        self.experts = GroupedMLP(expert_names(config.experts), width, config.hidden, config.dropout)
        self.gates = GroupedLinear(inputs.task_names, width, config.experts, is_gate=True)
        self.out_dim = config.hidden[-1]

    def forward(self, representation: Tensor, context: Context) -> TrunkOutput:
        """Takes a representation ``(batch, in_dim)`` or ``(tasks, batch, in_dim)``."""
        z = self.scenario.append_to(representation, context.scenarios)
        shares = self.gates(z).softmax(-1)  # (tasks, batch, experts)
        return TrunkOutput(mixture(self.experts, z, shares), experts={"experts": shares.detach()})
