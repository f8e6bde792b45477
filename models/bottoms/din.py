"""Bottom `din`: behaviours weighted by their relation to the candidate.

Zhou et al., Deep Interest Network for Click-Through Rate Prediction, KDD 2018.
"""

import torch
from torch import Tensor, nn

from models.bottoms.base import Bottom
from models.config import DinConfig
from models.inputs import Embedded, ModelInputs
from models.layers.mlp import Units, mlp
from models.layers.pooling import divide_by_length


class TargetAttention(nn.Module):
    """``v(A) = sum_j a(e_j, A) e_j`` with ``a`` an MLP on ``[e_j, A, e_j - A, e_j * A]``.

    The weights are not normalised, so that the length of the sum reflects the intensity of the interest (section 4.3 of
    the paper). The interaction is difference and product, as in the authors' code; the paper uses the outer product.
    """

    def __init__(self, dim: int, hidden: list[int]) -> None:
        super().__init__()
        self.score = nn.Sequential(mlp(4 * dim, hidden), Units(hidden[-1] if hidden else 4 * dim, 1))
        for layer in self.score.modules():  # smaller weights than `mlp` uses: scores add up over a sequence
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()

    def forward(self, sequence: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        """Maps ``(batch, length, dim)``, ``(batch,)`` and ``(batch, dim)`` to ``(batch, dim)``.

        An empty sequence gives zeros.
        """
        inside = torch.arange(sequence.shape[1], device=lengths.device) < lengths.unsqueeze(1)
        sample, position = inside.nonzero(as_tuple=True)  # without padding, which is most of a batch
        rows, candidate = sequence[sample, position], target.index_select(0, sample)
        pairs = torch.cat([rows, candidate, rows - candidate, rows * candidate], dim=1)
        weighted = self.score(pairs) * rows
        return torch.zeros_like(target, dtype=weighted.dtype).index_add(0, sample, weighted)


class DinBottom(Bottom):
    """Concatenates features, one interest vector per sequence, and numerics, for all tasks: ``(batch, out_dim)``."""

    def __init__(self, inputs: ModelInputs, config: DinConfig) -> None:
        super().__init__()
        self._target = config.target
        width = inputs.dim(config.target)
        sequences = [f.name for f in inputs.features if f.kind == "sequence"]
        self.attention = nn.ModuleDict(
            {name: TargetAttention(width, config.hidden) for name in sequences if inputs.dim(name) == width}
        )
        self.out_dim = sum(inputs.dim(f.name) for f in inputs.features) + inputs.numerics

    def forward(self, embedded: Embedded) -> Tensor:
        target = embedded.features[self._target]
        interests = []
        for name, sequence in embedded.sequences.items():
            lengths = embedded.lengths[name]
            if name in self.attention:
                interests.append(self.attention[name](sequence, lengths, target))
            else:
                interests.append(divide_by_length(sequence.sum(1), lengths))
        return torch.cat([*embedded.features.values(), *interests, embedded.numerics], dim=1)
