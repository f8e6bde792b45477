"""Trunk `aesm`: each row selects its specific and its shared experts, first by scenario, then by task.

Zou et al., Automatic Expert Selection for Multi-Scenario and Multi-Task Search (AESM2), SIGIR 2022.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.config import AESMConfig
from models.inputs import ModelInputs
from models.labels import combined, expert_names, label, label_outputs
from models.layers.experts import mixture, sparse_mixture
from models.layers.grouped import GroupedMLP
from models.layers.noise import normal
from models.layers.scenario import level_embeddings
from models.trunks.base import Context, Trunk, TrunkOutput


class AESMTrunk(Trunk):
    """Layers of expert selection (section 4), `scenario_layers` for each level of the tree and then `task_layers`.

    The gates of level i read the embeddings of the levels up to i; the gates of the task layers read the embeddings of
    all levels and of the task. A level of m scenarios has m gates, so a tree of N_1 x N_2 fine scenarios needs
    N_1 + N_2 gates. The first task layer has the same input for all tasks, the output of the scenario layers, and a
    separate output for each task. The tasks share the experts of a layer but not its gates.
    `noise` falls linearly with the step, which the authors suggest (section 6). The step is a buffer, so that a resumed
    run continues with the noise at which it stopped. It starts again when a scenario or a task is added: the new gates
    try the experts as those of a new run.
    The penalty is ``sum over layers( specific_weight L_sp + shared_weight L_sh )``. Each L is a mean over the rows of
    the global batch and, as in the authors' code, over the selected experts: it does not grow with their number. Where
    rows have weights for tasks, it is a weighted mean: of a task's own selection with the weights for that task.
    """

    has_experts = True
    keeps_predictions = frozenset()  # selection compares the gates of all scenarios and of all tasks
    restarted = frozenset({"step"})

    def __init__(self, inputs: ModelInputs, config: AESMConfig, in_dim: int) -> None:
        super().__init__()
        self._config = config
        self._tasks = len(inputs.tasks)
        width, out_dim = config.scenario_dim, config.hidden[-1]
        self.scenario = level_embeddings(inputs.scenarios, width)
        self.task = nn.Embedding(self._tasks, width)
        label(self.task, "weight", 0, inputs.task_names)
        self.scenario_layers, self.task_layers = nn.ModuleList(), nn.ModuleList()
        for level, gates in enumerate(inputs.scenarios):
            for _ in range(config.scenario_layers):
                number = len(self.scenario_layers)
                self.scenario_layers.append(SelectionLayer(in_dim, (level + 1) * width, gates, config, number))
                in_dim = out_dim
        for _ in range(config.task_layers):
            number = len(self.scenario_layers) + len(self.task_layers)
            indicator_dim = (len(inputs.scenarios) + 1) * width
            self.task_layers.append(SelectionLayer(in_dim, indicator_dim, inputs.task_names, config, number))
            in_dim = out_dim
        self.step: Tensor
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._names = [f"{level} {i + 1}" for level in inputs.levels for i in range(config.scenario_layers)]
        self._names += [f"task layer {i + 1}" for i in range(config.task_layers)]
        self.diagnostics = ("noise", *(f"kl/{n}/{kind}" for n in self._names for kind in ("specific", "shared")))
        self.out_dim = out_dim

    def forward(self, representation: Tensor, context: Context) -> TrunkOutput:
        """Takes a representation ``(batch, in_dim)`` or ``(tasks, batch, in_dim)``."""
        noise = self._noise()
        z, outputs = representation, []
        embedded = [level(context.scenarios[:, i]) for i, level in enumerate(self.scenario)]
        for number, layer in enumerate(self.scenario_layers):
            level = number // self._config.scenario_layers
            indicator, own = torch.cat(embedded[: level + 1], dim=1), context.scenarios[:, level]
            outputs.append(layer(z, indicator, own, noise, context.noise_keys))
            z = outputs[-1].hidden if z.dim() == 3 else outputs[-1].hidden.squeeze(0)
        tasks = torch.arange(self._tasks, device=z.device).unsqueeze(1).expand(-1, len(context.scenarios))
        scenario = torch.cat(embedded, dim=1).expand(self._tasks, -1, -1)
        for layer in self.task_layers:
            indicator = torch.cat([scenario, self.task(tasks)], dim=2)
            outputs.append(layer(z, indicator, tasks, noise, context.noise_keys))
            z = outputs[-1].hidden
        means = torch.stack([output.mean_divergences(context) for output in outputs])  # (layers, 2)
        penalty = (means * means.new_tensor([self._config.specific_weight, self._config.shared_weight])).sum()
        diagnostics = dict(zip(self.diagnostics, [noise, *means.detach().flatten()], strict=True))
        shares = dict(zip(self._names, [output.shares for output in outputs], strict=True))
        return TrunkOutput(z, penalty=penalty, diagnostics=diagnostics, experts=shares)

    def _noise(self) -> Tensor:
        """Returns the standard deviation of this step's noise. In training, it also increments the step."""
        steps = self._config.noise_steps
        left = 1 - self.step / steps if steps is not None else torch.ones_like(self.step)
        noise = self._config.noise * left.clamp(min=0)
        if self.training:
            self.step += 1
        return noise


@dataclass
class Selection:
    """Output of a selection layer."""

    hidden: Tensor  # (copies, batch, h)
    shares: Tensor  # (copies, batch, experts), detached, 0 where not selected
    specific: Tensor  # (copies, batch, top): distances of selected experts to the row's own scenario
    shared: Tensor  # (copies, batch, top): distances of selected experts to all scenarios evenly

    def mean_divergences(self, context: Context) -> Tensor:
        """``(L_sp, L_sh)``, this worker's share: means over rows, copies and selected experts."""
        weights = context.task_weights
        if weights is not None and len(self.specific) > 1:  # a copy per task
            return torch.stack([weights.mean(part.mean(2).T).mean() for part in (self.specific, self.shared)])
        rows = torch.stack([self.specific.mean((0, 2)), self.shared.mean((0, 2))])
        return (rows * context.weights).sum(1) / context.weight_total


class SelectionLayer(nn.Module):
    """One layer of experts, with one gate per scenario of a level, or per task (section 4.2).

    With a single gate, no expert can be specific: the layer is then a mixture of all its experts.
    Gates and experts have no batch normalisation: the authors' code has it, the paper does not.
    """

    def __init__(self, in_dim: int, indicator_dim: int, gates: Sequence[str], config: AESMConfig, number: int) -> None:
        super().__init__()
        self._number = number  # index of the layer in the trunk: each layer draws different noise
        top = (config.top_specific, config.top_shared) if len(gates) > 1 else (config.experts, config.experts)
        self._top = min(top[0], config.experts), min(top[1], config.experts)
        self._noise_in_mixture = config.noise_in_mixture
        self._shape = len(gates), config.experts
        experts = expert_names(config.experts)
        self.experts = GroupedMLP(experts, in_dim, config.hidden, config.dropout)
        self.gates = nn.Linear(in_dim + indicator_dim, len(gates) * len(experts))
        label_outputs(self.gates, combined(gates, experts))

    def forward(self, z: Tensor, indicator: Tensor, own: Tensor, noise: Tensor, noise_keys: Tensor) -> Selection:
        """Selects and mixes.

        Args:
            z: ``(batch, d)``, or ``(copies, batch, d)``.
            indicator: ``(batch, e)``, or ``(copies, batch, e)`` with one copy per task.
            own: index of each row's own gate, ``(batch,)`` or ``(copies, batch)``.
            noise: scalar; standard deviation of the gates' noise in training.
            noise_keys: ``(batch,)``, keys of the rows' random draws.
        """
        copies = torch.broadcast_shapes(z.shape[:-1], indicator.shape[:-1], (1, 1))
        inputs = torch.cat([z.expand(*copies, -1), indicator.to(z.dtype).expand(*copies, -1)], dim=-1)
        with torch.autocast(z.device.type, enabled=False):  # bfloat16 would select different experts for some rows
            logits = self.gates(inputs.float()).unflatten(-1, self._shape)  # (copies, batch, gates, experts)
        noisy = logits + noise * normal(noise_keys, self._number, logits.shape) if self.training else logits
        own = own.expand(copies)
        selected, specific, shared = select(noisy, own, *self._top)
        mixed = own_gate(noisy if self._noise_in_mixture else logits, own)
        shares = mixed.masked_fill(~selected, -math.inf).softmax(-1)
        rows_of_all = z.shape[:-1].numel() * self._shape[1]
        if rows_of_all <= copies.numel() * sum(self._top):  # tasks with the same input can share outputs
            hidden = mixture(self.experts, z, shares)
        else:
            hidden = sparse_mixture(self.experts, z, shares, selected)
        return Selection(hidden, shares.detach(), specific, shared)


def select(logits: Tensor, own: Tensor, top_specific: int, top_shared: int) -> tuple[Tensor, Tensor, Tensor]:
    """Selects the experts of each row (section 4.2): the nearest to its own scenario, and the nearest to all scenarios.

    With ``G_k = softmax over the gates of expert k's logits``, the distances are ``KL(one-hot_j ‖ G_k)`` and
    ``KL(uniform ‖ G_k)``. The two selections are independent, so an expert may be in both.

    Args:
        logits: ``(..., gates, experts)``.
        own: index j of each row's own gate, ``(...)``.
        top_specific: number of specific experts.
        top_shared: number of shared experts.

    Returns:
        Whether an expert is selected, ``(..., experts)`` bool, and the distances of the selected specific and shared
        experts, ``(..., top)`` each.
    """
    log_shares = logits.log_softmax(-2)
    specific = -own_gate(log_shares, own)
    shared = -math.log(logits.shape[-2]) - log_shares.mean(-2)
    specific, specific_experts = specific.topk(top_specific, largest=False)
    shared, shared_experts = shared.topk(top_shared, largest=False)
    selected = torch.zeros(logits.shape[:-2] + logits.shape[-1:], dtype=torch.bool, device=logits.device)
    selected = selected.scatter(-1, torch.cat([specific_experts, shared_experts], dim=-1), True)
    return selected, specific, shared


def own_gate(values: Tensor, own: Tensor) -> Tensor:
    """Returns the values of each row's own gate, ``(..., experts)``, from ``(..., gates, experts)``."""
    index = own[..., None, None].expand(*own.shape, 1, values.shape[-1])
    return values.gather(-2, index).squeeze(-2)
