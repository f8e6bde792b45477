"""Parameters that weight decay leaves unchanged: towards zero is not towards a simpler model for all of them."""

from itertools import chain

from torch import nn

# Stored on the module, like the labels of axes.
_SPARED = "without_weight_decay"


def spare(module: nn.Module, *names: str) -> None:
    """Exempts parameters of this module, not of its submodules, from weight decay.

    For parameters with several axes that are biases, or that multiply other values and start near one. Parameters with
    one axis are exempt in any case.
    """
    missing = set(names) - {name for name, _ in module.named_parameters(recurse=False)}
    assert not missing, missing
    module.__dict__.setdefault(_SPARED, set()).update(names)


def spared_parameters(root: nn.Module) -> frozenset[str]:
    """Names of all parameters without weight decay: those with at most one axis (biases, factors of normalisations, log
    variances), and those that `spare` has exempted."""
    marked = (
        f"{prefix}.{name}" if prefix else name
        for prefix, module in root.named_modules()
        for name in module.__dict__.get(_SPARED, ())
    )
    return frozenset(chain(marked, (name for name, parameter in root.named_parameters() if parameter.dim() <= 1)))
