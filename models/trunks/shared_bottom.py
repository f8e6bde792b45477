"""Trunk `shared_bottom`: hard sharing, one network for all tasks and scenarios."""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from models.inputs import ModelInputs
from models.layers.mlp import mlp
from models.layers.scenario import ScenarioEmbedding
from models.section import ModelSection, Widths
from models.trunks.output import TrunkOutput


class SharedBottomConfig(ModelSection):
    """One MLP that all tasks share; the scenario is an input."""

    kind: Literal["shared_bottom"]
    hidden: Widths = Field(default=[256, 128], min_length=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    scenario_dim: int = Field(default=8, ge=1)


class SharedBottomTrunk(nn.Module):
    """``h = f([x ‖ s])`` for every task (Caruana, Multitask Learning, 1997)."""

    def __init__(self, inputs: ModelInputs, config: SharedBottomConfig, in_dim: int) -> None:
        super().__init__()
        self._tasks = len(inputs.tasks)
        self.scenario = ScenarioEmbedding(inputs.scenarios, config.scenario_dim)
        self.bottom = mlp(in_dim + self.scenario.dim, config.hidden, config.dropout)
        self.out_dim = config.hidden[-1]

    def forward(self, representation: Tensor, scenarios: Tensor) -> TrunkOutput:
        """Representation ``(batch, in_dim)`` or ``(tasks, batch, in_dim)``, scenarios ``(batch, levels)``."""
        hidden = self.bottom(self.scenario.beside(representation, scenarios))
        return TrunkOutput(hidden.expand(self._tasks, *hidden.shape[-2:]))
