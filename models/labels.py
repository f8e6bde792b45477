"""What the positions of an axis stand for, where they are tasks or scenarios.

Positions move when a model grows: a scenario value that is added stands before `other`. Names do not.
"""

from collections.abc import Sequence
from itertools import chain, product

from torch import nn

Names = tuple[str, ...]

# Kept on the module and not on the tensor: a buffer that is moved to another device is another tensor.
_LABELS = "axis_labels"


def label(module: nn.Module, tensor: str, axis: int, names: Sequence[str]) -> None:
    """Records that an axis of the module's own parameter or buffer stands for these names, one a position.

    Raises:
        ValueError: there are not as many names as positions, or a name stands there twice.
    """
    own = dict(chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False)))
    size = own[tensor].shape[axis]
    if len(names) != size or len(set(names)) != size:
        raise ValueError(f"{tensor}: axis {axis} has {size} positions, which need as many different names: {names}")
    module.__dict__.setdefault(_LABELS, {}).setdefault(tensor, {})[axis] = tuple(names)


def label_outputs(linear: nn.Linear, names: Sequence[str]) -> None:
    """The same for the outputs of a linear layer."""
    label(linear, "weight", 0, names)
    if linear.bias is not None:
        label(linear, "bias", 0, names)


def axis_labels(root: nn.Module) -> dict[str, dict[int, Names]]:
    """Every labelled axis below a module: full name of the tensor, as in `state_dict`, -> axis -> names."""
    return {
        f"{prefix}.{tensor}" if prefix else tensor: dict(axes)
        for prefix, module in root.named_modules()
        for tensor, axes in module.__dict__.get(_LABELS, {}).items()
    }


def combined(*parts: Sequence[str], separator: str = "|") -> Names:
    """Names of all combinations; the last part varies fastest."""
    return tuple(separator.join(names) for names in product(*parts))


def expert_names(count: int) -> Names:
    """Names of experts that no task and no scenario owns."""
    return tuple(f"expert {number}" for number in range(count))
