"""Copies a trained model into a model with more tasks or more scenarios."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.labels import Names

Labels = Mapping[str, Mapping[int, Names]]  # name of a tensor -> axis -> names of its positions


@dataclass(frozen=True)
class Carried:
    """The tensors of the new model, by their origin."""

    kept: tuple[str, ...]  # copied unchanged
    grown: dict[str, Names]  # copied, with the names of the added positions
    new: tuple[str, ...]  # not in the old model


def carry_over(old: Mapping[str, Tensor], old_labels: Labels, new: Mapping[str, Tensor], new_labels: Labels) -> Carried:
    """Copies old values, in place, to the positions of the new tensors that have the same name and the same labels.

    All other values of the new tensors stay as they are. Nothing is copied unless every old value has a position in the
    new model.

    Raises:
        ValueError: the new model lacks a tensor or a label of the old one, or an axis without labels has another size.
    """
    for name, tensor in old.items():
        if name not in new:
            raise ValueError(f"{name}: the new model has no such tensor; a model can only grow")
        _check(name, tensor, old_labels.get(name, {}), new[name], new_labels.get(name, {}))
    grown: dict[str, Names] = {}
    for name, tensor in old.items():
        before, after = old_labels.get(name, {}), new_labels.get(name, {})
        _copy(tensor, before, new[name], after)
        added = [names for axis in after for names in after[axis] if names not in before[axis]]
        if added:
            grown[name] = tuple(dict.fromkeys(added))  # each name once, even if two axes have the same labels
    kept = tuple(name for name in old if name not in grown)
    return Carried(kept, grown, tuple(name for name in new if name not in old))


def state_labels(state: Mapping[str, Tensor], parameters: Mapping[str, Tensor], labels: Labels) -> Labels:
    """Labels of an optimizer's tensors, which are named `PARAMETER.KIND`.

    A tensor with the shape of its parameter has the labels of that parameter; every other tensor has none.
    """
    owners = {name: name.rpartition(".")[0] for name in state}
    return {
        name: labels[owner]
        for name, owner in owners.items()
        if owner in labels and state[name].shape == parameters[owner].shape
    }


def _check(name: str, old: Tensor, before: Mapping[int, Names], new: Tensor, after: Mapping[int, Names]) -> None:
    if old.dim() != new.dim() or before.keys() != after.keys():
        raise ValueError(f"{name}: the axes of shape {tuple(old.shape)} and {tuple(new.shape)} do not match")
    for axis, (size, other) in enumerate(zip(old.shape, new.shape, strict=True)):
        if axis not in before and size != other:
            raise ValueError(f"{name}: axis {axis} has {size} positions in the old model and {other} in the new one")
        missing = set(before.get(axis, ())) - set(after.get(axis, ()))
        if missing:
            names = ", ".join(sorted(missing))
            raise ValueError(f"{name}: the new model has no position for {names}; a model can only grow")


def _copy(old: Tensor, before: Mapping[int, Names], new: Tensor, after: Mapping[int, Names]) -> None:
    with torch.no_grad():
        if before == after:
            new.copy_(old)
            return
        positions = [
            [after[axis].index(name) for name in before[axis]] if axis in before else list(range(size))
            for axis, size in enumerate(old.shape)
        ]
        index = torch.meshgrid([torch.tensor(axis, device=new.device) for axis in positions], indexing="ij")
        new[index] = old.to(new)
