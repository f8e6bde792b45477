"""Trunk `shared_bottom`: hard sharing, one network for all tasks and scenarios."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from models.inputs import ModelInputs
from models.layers.mlp import mlp
from models.layers.scenario import ScenarioEmbedding
from models.section import ModelSection, Widths
from models.trunks.base import Context, Trunk, TrunkOutput


class SharedBottomConfig(ModelSection):
    """One MLP that all tasks share; the scenario is an input."""

    kind: Literal["shared_bottom"]
    hidden: Widths = [256, 128]
    """Layers of the network. None: the towers stand on the shared embedding, as in ESMM."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    scenario_dim: int = Field(default=8, ge=1)


class SharedBottomTrunk(Trunk):
    """``h = f([x ‖ s])`` for every task (Caruana, Multitask Learning, 1997).

    Scenarios: all rows train the same network, and the scenario is an input. Without hidden layers, and with the head
    `product`, this is ESMM (Ma et al., SIGIR 2018); for one task and one scenario it is a plain DNN.
    """

    def __init__(self, inputs: ModelInputs, config: SharedBottomConfig, in_dim: int) -> None:
        super().__init__()
        self._tasks = len(inputs.tasks)
        self.scenario = ScenarioEmbedding(inputs.scenarios, config.scenario_dim)
        width = in_dim + self.scenario.dim
        self.bottom = mlp(width, config.hidden, config.dropout)
        self.out_dim = config.hidden[-1] if config.hidden else width

    def forward(self, representation: Tensor, context: Context) -> TrunkOutput:
        """Representation ``(batch, in_dim)`` or ``(tasks, batch, in_dim)``."""
        hidden = self.bottom(self.scenario.beside(representation, context.scenarios))
        return TrunkOutput(hidden.expand(self._tasks, *hidden.shape[-2:]))
