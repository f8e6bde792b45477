"""Many rows of a sample as one vector."""

from torch import Tensor


def averaged(total: Tensor, lengths: Tensor) -> Tensor:
    """Sums over the rows of a sample, ``(batch, dim)``, and their number ``(batch,)`` to means; zeros where empty."""
    return total / lengths.clamp(min=1).unsqueeze(1)
