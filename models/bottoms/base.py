"""The interface of all bottoms."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from models.inputs import Embedded


class Bottom(nn.Module, ABC):
    """Computes the representation of a row from its embeddings and numbers."""

    out_dim: int

    @abstractmethod
    def forward(self, embedded: Embedded) -> Tensor:
        """Returns one representation for all tasks, ``(batch, out_dim)``, or one per task: ``(tasks, batch,
        out_dim)``."""
