"""Names for the positions of an axis that represents tasks or scenarios.

Positions change when a model grows, because a new scenario value is inserted before `other`. Names do not change.
"""

from collections.abc import Sequence
from itertools import chain, product

from torch import nn

Names = tuple[str, ...]

# Stored on the module, not on the tensor: a buffer that is moved to another device becomes a new tensor.
_LABELS = "axis_labels"


def label(module: nn.Module, tensor: str, axis: int, names: Sequence[str]) -> None:
    """Records the names of the positions along one axis of a parameter or buffer of this module, not of its submodules.

    Raises:
        ValueError: the number of names differs from the number of positions, or a name appears twice.
    """
    own = dict(chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False)))
    size = own[tensor].shape[axis]
    if len(names) != size or len(set(names)) != size:
        raise ValueError(f"{tensor}: axis {axis} has {size} positions and needs one unique name for each, not {names}")
    module.__dict__.setdefault(_LABELS, {}).setdefault(tensor, {})[axis] = tuple(names)


def label_outputs(linear: nn.Linear, names: Sequence[str]) -> None:
    """Records the names of the outputs of a linear layer."""
    label(linear, "weight", 0, names)
    if linear.bias is not None:
        label(linear, "bias", 0, names)


def axis_labels(root: nn.Module) -> dict[str, dict[int, Names]]:
    """All labelled axes of a module and its submodules: name of the tensor in `state_dict` -> axis -> names."""
    return {
        f"{prefix}.{tensor}" if prefix else tensor: dict(axes)
        for prefix, module in root.named_modules()
        for tensor, axes in module.__dict__.get(_LABELS, {}).items()
    }


def combined(*parts: Sequence[str], separator: str = "|") -> Names:
    """Names of all combinations; the last part varies fastest."""
    return tuple(separator.join(names) for names in product(*parts))


def expert_names(count: int) -> Names:
    """Names of experts that do not belong to a task or a scenario."""
    return tuple(f"expert {number}" for number in range(count))
