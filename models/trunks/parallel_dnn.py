"""Trunk `parallel_dnn`: a separate network for each pair of scenario and task, on the shared embedding.

The baseline "Parallel DNN" of Zou et al. (AESM2), SIGIR 2022. The paper describes it in one sentence; we read it as
networks that share only the embeddings.
"""

import torch
from torch import Tensor

from models.config import ParallelDNNConfig
from models.inputs import ModelInputs
from models.labels import combined
from models.layers.grouped import GroupedMLP, Groups
from models.layers.scenario import FinestScenario
from models.trunks.base import Context, Trunk, TrunkOutput


class ParallelDNNTrunk(Trunk):
    """``h_t = f_{s,t}(x)`` for a row of the finest scenario s. Only the networks of its own scenario process a row."""

    def __init__(self, inputs: ModelInputs, config: ParallelDNNConfig, in_dim: int) -> None:
        super().__init__()
        self._tasks = len(inputs.tasks)
        self._finest = FinestScenario(inputs.scenarios)
        groups = combined(inputs.task_names, self._finest.labels)
        self.networks = GroupedMLP(groups, in_dim, config.hidden, config.dropout)
        self.out_dim = config.hidden[-1]

    def forward(self, representation: Tensor, context: Context) -> TrunkOutput:
        """Takes a representation ``(batch, in_dim)`` or ``(tasks, batch, in_dim)``."""
        scenario = self._finest(context.scenarios)
        tasks = torch.arange(self._tasks, device=scenario.device).unsqueeze(1)
        groups = Groups.of((tasks * self._finest.count + scenario).flatten(), self._tasks * self._finest.count)
        rows = representation.expand(self._tasks, -1, -1).flatten(0, 1)
        hidden = groups.scatter(self.networks.ragged(groups.gather(rows), groups.sizes))
        return TrunkOutput(hidden.view(self._tasks, len(scenario), -1))
