"""Trunk `htlnet`: towers in causal order; each reads the representations and predictions of the earlier towers.

Tang et al., Touch the Core: Exploring Task Dependence Among Hybrid Targets for Recommendation (HTLNet), RecSys 2024.
Its gradient rule is in models/gradients.py.
"""

import torch
from torch import Tensor, nn

from models.config import HTLNetConfig
from models.inputs import ModelInputs
from models.layers.fusion import InformationFusion
from models.layers.label_embedding import LabelEmbedding
from models.layers.mlp import mlp
from models.layers.scenario import ScenarioEmbedding
from models.trunks.base import Context, Trunk, TrunkOutput


class HTLNetTrunk(Trunk):
    """``h_t = tower_t([rep_f ‖ le_f ‖ x ‖ s])``, without rep_f and le_f for a task that does not come after another.

    `rep_f` fuses the representations and `le_f` the label embeddings of all tasks before t on its `after` chain. A
    tower's representation is its first hidden layer, as in the public re-implementation; the paper does not define it.
    Stop-gradient (equation 15): representations and predictions are detached before they are embedded and fused. The
    label tables and fusion units are therefore trained by the task that reads them, and a later task never changes an
    earlier tower. The predictions are those of the head, P(task), also with its `product`. A task that others read
    is predicted here, once, and the head returns that prediction: a dropout mask is the same in both.
    The drawn labels of the tasks are independent of each other given their probabilities, as in the paper.
    Scenarios: all rows train the same towers, and the scenario is an input of each tower.
    """

    def __init__(self, inputs: ModelInputs, config: HTLNetConfig, in_dim: int) -> None:
        super().__init__()
        self.scenario = ScenarioEmbedding(inputs.scenarios, config.scenario_dim)
        names = inputs.task_names
        self._after = [task.after for task in inputs.tasks]
        self._before = {name: _chain(inputs, k) for k, name in enumerate(names)}
        read = [name for name in names if any(name in chain for chain in self._before.values())]
        first, dim = config.hidden[0], config.fusion_dim
        self.labels = nn.ModuleDict({name: LabelEmbedding(config.label_dim, config.temperature) for name in read})
        later = [name for name, chain in self._before.items() if chain]
        self.fused_representations = nn.ModuleDict({name: InformationFusion(first, dim) for name in later})
        self.fused_labels = nn.ModuleDict({name: InformationFusion(config.label_dim, dim) for name in later})
        width = in_dim + self.scenario.dim
        self.firsts = nn.ModuleDict(
            {
                name: mlp(width + (2 * dim if chain else 0), [first], config.dropout)
                for name, chain in self._before.items()
            }
        )
        self.rests = nn.ModuleDict({name: mlp(first, config.hidden[1:], config.dropout) for name in names})
        self.out_dim = config.hidden[-1]

    def forward(self, representation: Tensor, context: Context) -> TrunkOutput:
        """Takes a representation ``(batch, in_dim)`` or ``(tasks, batch, in_dim)``."""
        assert context.predict is not None, "htlnet reads the predictions of its head"
        x = self.scenario.append_to(representation, context.scenarios).expand(len(self._before), -1, -1)
        hidden: list[Tensor] = []
        representations: dict[str, Tensor] = {}
        predictions: dict[int, Tensor] = {}
        labels: dict[str, Tensor] = {}
        for k, (name, chain) in enumerate(self._before.items()):
            inputs = x[k]
            if chain:
                earlier = self.fused_representations[name](torch.stack([representations[task] for task in chain]))
                predicted = self.fused_labels[name](torch.stack([labels[task] for task in chain]))
                inputs = torch.cat([earlier, predicted, inputs], dim=1)
            first = self.firsts[name](inputs)
            hidden.append(self.rests[name](first))
            representations[name] = first.detach()
            if name in self.labels:
                after = self._after[k]
                predictions[k] = context.predict(k, hidden[k], None if after is None else predictions[after])
                labels[name] = self.labels[name](predictions[k][:, :2].detach(), context.noise_keys, k)
        return TrunkOutput(torch.stack(hidden), predictions=predictions)


def _chain(inputs: ModelInputs, task: int) -> list[str]:
    """Names of all tasks that a task comes after, from first to last."""
    after = inputs.tasks[task].after
    return [] if after is None else [*_chain(inputs, after), inputs.tasks[after].name]
