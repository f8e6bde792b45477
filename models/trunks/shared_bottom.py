"""Trunk `shared_bottom`: hard parameter sharing, one network for all tasks and scenarios."""

from torch import Tensor

from models.config import SharedBottomConfig
from models.inputs import ModelInputs
from models.layers.mlp import mlp
from models.layers.scenario import ScenarioEmbedding
from models.trunks.base import Context, Trunk, TrunkOutput


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
        """Takes a representation ``(batch, in_dim)`` or ``(tasks, batch, in_dim)``."""
        hidden = self.bottom(self.scenario.append_to(representation, context.scenarios))
        return TrunkOutput(hidden.expand(self._tasks, *hidden.shape[-2:]))
