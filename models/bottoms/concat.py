"""Bottom `concat`: concatenates features and the means of behaviour sequences."""

import torch
from torch import Tensor

from models.bottoms.base import Bottom
from models.inputs import Embedded, ModelInputs
from models.layers.pooling import divide_by_length


class ConcatBottom(Bottom):
    """``[field_1 ‖ ... ‖ mean(sequence_1) ‖ ... ‖ numerics]``, shared by all tasks: ``(batch, out_dim)``."""

    def __init__(self, inputs: ModelInputs) -> None:
        super().__init__()
        self.out_dim = sum(inputs.dim(f.name) for f in inputs.features) + inputs.numerics

    def forward(self, embedded: Embedded) -> Tensor:
        means = [divide_by_length(rows.sum(1), embedded.lengths[name]) for name, rows in embedded.sequences.items()]
        return torch.cat([*embedded.features.values(), *means, embedded.numerics], dim=1)
