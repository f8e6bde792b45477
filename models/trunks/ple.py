"""Trunk `ple`: levels of specific and shared experts with a fixed assignment, first by scenario, then by task.

Tang et al., Progressive Layered Extraction (PLE), RecSys 2020.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.config import PLEConfig
from models.inputs import ModelInputs
from models.labels import combined, expert_names, label_outputs
from models.layers.grouped import GroupedLinear, GroupedMLP, Groups
from models.trunks.base import Context, Trunk, TrunkOutput


class PLETrunk(Trunk):
    """``g_k = softmax(W_k x_k) [E_k,1..m; E_s,1..m']``, stacked, with a shared stream between levels (section 4).

    Scenarios: the AESM2 paper adds a layer for scenarios to PLE. Here each level of the scenario tree has one layer,
    with specific experts for each scenario and with shared experts. The experts of a row's own scenario and the shared
    experts process it. The output is the input of all tasks and of the shared stream of the first level. There is no
    shared stream between scenarios, because it would need the experts of all scenarios on every row.
    """

    has_experts = True
    keeps_predictions = frozenset({"scenario"})  # the shared stream mixes the experts of all tasks

    def __init__(self, inputs: ModelInputs, config: PLEConfig, in_dim: int) -> None:
        super().__init__()
        tasks, width = inputs.task_names, config.hidden[-1]
        scenario_inputs = [in_dim, *[width] * (len(inputs.scenarios) - 1)]
        self.scenario_layers = nn.ModuleList(
            ScenarioExtraction(level, config, d) for level, d in zip(inputs.scenarios, scenario_inputs, strict=True)
        )
        self.task_levels = nn.ModuleList(
            TaskExtraction(tasks, config, width, is_last=level == config.levels - 1) for level in range(config.levels)
        )
        self._tasks = len(tasks)
        self.out_dim = width

    def forward(self, representation: Tensor, context: Context) -> TrunkOutput:
        """Takes a representation ``(batch, in_dim)`` or ``(tasks, batch, in_dim)``."""
        experts = {}
        z = representation
        for level, layer in enumerate(self.scenario_layers):
            z = layer(z, context.scenarios[:, level])
        shared: Tensor | None = z if z.dim() == 2 else None
        own = z.expand(self._tasks, -1, -1)
        for number, extraction in enumerate(self.task_levels, start=1):
            own, shared, shares = extraction(own, shared)
            experts[f"task layer {number}"] = shares
        return TrunkOutput(own, experts=experts)


class ScenarioExtraction(nn.Module):
    """Experts of one scenario level: the gate of a row's scenario mixes its specific and the shared experts."""

    def __init__(self, scenarios: Sequence[str], config: PLEConfig, in_dim: int) -> None:
        super().__init__()
        self._scenarios, self._specific = len(scenarios), config.specific
        own = combined(scenarios, expert_names(config.specific))
        self.specific = GroupedMLP(own, in_dim, config.hidden, config.dropout)
        self.shared = GroupedMLP(expert_names(config.shared), in_dim, config.hidden, config.dropout)
        self.gates = GroupedLinear(scenarios, in_dim, config.specific + config.shared, is_gate=True)

    def forward(self, x: Tensor, scenario: Tensor) -> Tensor:
        """Maps ``(..., batch, in_dim)`` and scenarios ``(batch,)`` to ``(..., batch, h)``."""
        rows = x.reshape(-1, x.shape[-1])
        scenario = scenario.expand(x.shape[:-1]).reshape(-1)
        numbers = torch.arange(self._specific, device=x.device).unsqueeze(1)
        own = Groups.of((scenario * self._specific + numbers).flatten(), self._scenarios * self._specific)
        outputs = own.scatter(self.specific.ragged(own.gather(rows.repeat(self._specific, 1)), own.sizes))
        outputs = torch.cat([outputs.view(self._specific, len(rows), -1), self.shared(rows)])
        gating = Groups.of(scenario, self._scenarios)
        gate = gating.scatter(self.gates.ragged(gating.gather(rows), gating.sizes)).softmax(-1)
        return torch.einsum("be,ebh->bh", gate.to(outputs.dtype), outputs).view(*x.shape[:-1], -1)


class TaskExtraction(nn.Module):
    """One level over the tasks (customised gate control). Every level but the last has a gate for the shared stream."""

    def __init__(self, tasks: Sequence[str], config: PLEConfig, in_dim: int, is_last: bool) -> None:
        super().__init__()
        self._tasks, self._specific = len(tasks), config.specific
        own, common = expert_names(config.specific), expert_names(config.shared)
        self.specific = nn.ModuleDict({task: GroupedMLP(own, in_dim, config.hidden, config.dropout) for task in tasks})
        self.shared = GroupedMLP(common, in_dim, config.hidden, config.dropout)
        self.gates = GroupedLinear(tasks, in_dim, config.specific + config.shared, is_gate=True)
        every = (*combined(tasks, own), *common)
        self.shared_gate = None if is_last else nn.Linear(in_dim, len(every), bias=False)
        if self.shared_gate is not None:
            label_outputs(self.shared_gate, every)

    def forward(self, own: Tensor, shared: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
        """Computes one level.

        Args:
            own: input of each task ``(tasks, batch, in_dim)``.
            shared: input of the shared experts ``(batch, in_dim)``. None if each task has its own representation: the
                shared experts then read all of them, and the shared stream's gate reads their mean.

        Returns:
            The stream of each task ``(tasks, batch, h)``; the shared stream ``(batch, h)``, None after the last level;
            and for each task the shares of its specific experts, then those of the shared experts,
            ``(tasks, batch, experts)``, detached.
        """
        specific = torch.stack([experts(x) for experts, x in zip(self.specific.values(), own, strict=True)])
        common = self.shared(own.flatten(0, 1) if shared is None else shared)  # (shared, rows, h)
        if shared is None:
            common = common.unflatten(1, own.shape[:2]).transpose(0, 1)  # (tasks, shared, batch, h)
        else:
            common = common.expand(self._tasks, *common.shape)
        shares = self.gates(own).softmax(-1)
        outputs = torch.cat([specific, common], dim=1)  # (tasks, experts, batch, h)
        fused = torch.einsum("tbe,tebh->tbh", shares.to(outputs.dtype), outputs)
        if self.shared_gate is None:
            return fused, None, shares.detach()
        gate = self.shared_gate(own.mean(0) if shared is None else shared).softmax(-1)
        every = torch.cat([specific.flatten(0, 1), common.mean(0)])
        stream = torch.einsum("be,ebh->bh", gate.to(every.dtype), every)
        return fused, stream, shares.detach()
