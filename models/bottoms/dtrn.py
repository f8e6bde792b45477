"""Bottom `dtrn`: a separate representation for each task, computed from the shared embeddings.

Liu et al., Deep Task-specific Bottom Representation Network for Multi-Task Recommendation (DTRN), CIKM 2023.
The paper's equations are not public. The parts and their purpose are those that the authors describe; the equations are
a reconstruction.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from models.bottoms.base import Bottom
from models.config import DTRNConfig
from models.inputs import Embedded, ModelInputs
from models.labels import label
from models.layers.grouped import GroupedLinear
from models.layers.pooling import divide_by_length
from models.layers.transformer import ConditionalBlock


class DTRNBottom(Bottom):
    """For task t: ``O_t = refine_t([features ‖ r_t,1 ‖ ... ‖ r_t,Nb ‖ numerics])``, ``(tasks, batch, out_dim)``.

    ``r_t,b`` is the interest that task t reads from behaviour b (the task-specific interest module); `refine_t` weights
    each feature (the task-specific representation refinement module). All numerics together count as one feature. A
    sequence whose width differs from the target's is represented by its mean, which is the same for all tasks.
    """

    def __init__(self, inputs: ModelInputs, config: DTRNConfig) -> None:
        super().__init__()
        self._target = config.target
        self._tasks = len(inputs.tasks)
        dim = inputs.dim(config.target)
        sequences = [f for f in inputs.features if f.kind == "sequence"]
        behaviours = {f.name: f.max_length for f in sequences if inputs.dim(f.name) == dim}
        self.interest = InterestModule(inputs.task_names, behaviours, dim, config)
        # Features in the order of their columns: those with one embedding, then sequences, then numerics.
        widths = [inputs.dim(f.name) for f in inputs.features if f.kind != "sequence"]
        widths += [inputs.dim(f.name) for f in sequences]
        self.out_dim = sum(widths) + inputs.numerics
        self.refine = RefinementModule(inputs.task_names, [*widths, inputs.numerics], config.refine_dim)

    def forward(self, embedded: Embedded) -> Tensor:
        interests = self.interest(embedded.sequences, embedded.lengths, embedded.features[self._target])
        for name, sequence in embedded.sequences.items():
            if name not in interests:
                mean = divide_by_length(sequence.sum(1), embedded.lengths[name])
                interests[name] = mean.expand(self._tasks, -1, -1)
        ordered = [interests[name] for name in embedded.sequences]
        shared = [value.expand(self._tasks, -1, -1) for value in embedded.features.values()]
        numerics = embedded.numerics.expand(self._tasks, -1, -1)
        return self.refine(torch.cat([*shared, *ordered, numerics], dim=2))


class InterestModule(nn.Module):
    """One Transformer for all pairs of task and behaviour; a hypernetwork computes its normalisations from the pair.

        h_t,b = relu(W1 [e_t ‖ e_b]),   gamma = 1 + W2 h_t,b,   beta = W3 h_t,b

    W2 and W3 start at zero, so that training starts from the plain Transformer. Positions are counted from the newest
    behaviour. The interest is target attention over the output of the Transformer:
    ``r_t,b = sum_s softmax_s( <W_q v, W_k Z_s> / sqrt(d) ) Z_s``; an empty sequence gives zeros.
    """

    def __init__(self, tasks: Sequence[str], behaviours: dict[str, int], dim: int, config: DTRNConfig) -> None:
        super().__init__()
        self._behaviours = list(behaviours)
        width = config.condition_dim
        self.position = nn.Parameter(0.02 * torch.randn(max(behaviours.values(), default=1), dim))
        self.task = nn.Parameter(torch.randn(len(tasks), width))
        label(self, "task", 0, tasks)
        self.behaviour = nn.Parameter(torch.randn(len(behaviours), width))
        self.blocks = nn.ModuleList(ConditionalBlock(dim, config.heads) for _ in range(config.blocks))
        self.condition = nn.Linear(2 * width, width)
        self.norms = nn.Linear(width, config.blocks * 4 * dim)
        nn.init.zeros_(self.norms.weight)
        nn.init.zeros_(self.norms.bias)
        self.query, self.key = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)

    def forward(self, sequences: dict[str, Tensor], lengths: dict[str, Tensor], target: Tensor) -> dict[str, Tensor]:
        """Maps sequences ``(batch, length, dim)`` and target ``(batch, dim)`` to interests ``(tasks, batch, dim)``."""
        norms = self._norms(target.shape[1])
        return {
            name: self._interest(sequences[name], lengths[name], target, norms[:, b])
            for b, name in enumerate(self._behaviours)
        }

    def _norms(self, dim: int) -> Tensor:
        """``(tasks, behaviours, blocks, 2, 2, dim)``, computed once per step because it does not depend on the rows."""
        tasks, behaviours = len(self.task), len(self.behaviour)
        pairs = torch.cat(
            [
                self.task.unsqueeze(1).expand(-1, behaviours, -1),
                self.behaviour.unsqueeze(0).expand(tasks, -1, -1),
            ],
            dim=2,
        )
        norms = self.norms(self.condition(pairs).relu()).view(tasks, behaviours, len(self.blocks), 2, 2, dim)
        gamma, beta = norms.unbind(4)
        return torch.stack([1 + gamma, beta], dim=4)

    def _interest(self, sequence: Tensor, lengths: Tensor, target: Tensor, norms: Tensor) -> Tensor:
        sequence = sequence[:, : max(int(lengths.max()), 1)]  # without the positions that are padding in all rows
        positions = torch.arange(sequence.shape[1], device=lengths.device)
        inside = positions < lengths.unsqueeze(1)
        age = (lengths.unsqueeze(1) - 1 - positions).clamp(min=0)
        rows = sequence + embedding(age, self.position)
        for number, block in enumerate(self.blocks):
            rows = block(rows, inside, norms[:, number])
        scores = torch.einsum("bd,tbsd->tbs", self.query(target), self.key(rows)) / math.sqrt(target.shape[1])
        scores = scores.masked_fill(~inside, torch.finfo(scores.dtype).min).softmax(2)
        # Padding has weight zero, even in a row that consists only of padding.
        return torch.einsum("tbs,tbsd->tbd", scores.masked_fill(~inside, 0.0).to(rows.dtype), rows)


class RefinementModule(nn.Module):
    """``a_t = 2 sigmoid(V2_t relu(V1_t E))``, one weight per feature, and ``O_t = a_t * E``.

    V2 starts at zero, so that training starts from E itself.
    """

    def __init__(self, tasks: Sequence[str], widths: list[int], hidden: int) -> None:
        super().__init__()
        self.field_of_column: Tensor
        columns = [feature for feature, width in enumerate(widths) for _ in range(width)]
        self.register_buffer("field_of_column", torch.tensor(columns), persistent=False)
        self.first = GroupedLinear(tasks, len(columns), hidden)
        self.second = GroupedLinear(tasks, hidden, len(widths))
        for parameter in self.second.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor) -> Tensor:
        """Maps ``(tasks, batch, d)`` to ``(tasks, batch, d)``."""
        weights = 2 * self.second(self.first(features).relu()).sigmoid()
        return features * weights.index_select(2, self.field_of_column).to(features.dtype)
