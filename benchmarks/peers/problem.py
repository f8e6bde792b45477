"""The problem of all peers: the data, the sizes, and the dense part of the model for peers without their own MMoE."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

BATCH = 4096
FEATURES = 26
ROWS = 100_002  # of each feature's table
DIM = 16
SCENARIOS = 4
SCENARIO_DIM = 8
EXPERTS = 8
EXPERT_HIDDEN = (256, 128)
TOWER_HIDDEN = 64
TASKS = 2
DENSE_LR = 1e-3
TABLE_LR = 0.05


@dataclass(frozen=True)
class Data:
    """The training rows, memory-mapped."""

    ids: np.ndarray  # (rows, FEATURES) int32
    scenarios: np.ndarray  # (rows,) int64
    labels: np.ndarray  # (rows, TASKS) float32

    @classmethod
    def open(cls, folder: Path) -> "Data":
        """Opens the three files of a folder."""
        return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("ids", "scenarios", "labels")))

    def rows_of(self, batch: int) -> slice:
        """The rows of a whole batch; at the end of the data it starts again from the first row."""
        start = batch % (len(self.ids) // BATCH) * BATCH
        return slice(start, start + BATCH)


class Mmoe(nn.Module):
    """Multi-gate mixture of experts: from the concatenated embeddings to one logit per task."""

    def __init__(self) -> None:
        super().__init__()
        width = FEATURES * DIM + SCENARIO_DIM
        first, last = EXPERT_HIDDEN
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, first), nn.ReLU(), nn.Linear(first, last), nn.ReLU()) for _ in range(EXPERTS)
        )
        self.gates = nn.Linear(width, TASKS * EXPERTS)  # the gates of all tasks in one multiplication
        self.towers = nn.ModuleList(
            nn.Sequential(nn.Linear(last, TOWER_HIDDEN), nn.ReLU(), nn.Linear(TOWER_HIDDEN, 1)) for _ in range(TASKS)
        )

    def forward(self, embedded: torch.Tensor) -> torch.Tensor:
        """Logits (rows, tasks) of embeddings (rows, width)."""
        outputs = torch.stack([expert(embedded) for expert in self.experts], dim=1)
        weights = self.gates(embedded).view(-1, TASKS, EXPERTS).softmax(dim=2)
        mixed = torch.bmm(weights, outputs)
        return torch.cat([tower(mixed[:, task]) for task, tower in enumerate(self.towers)], dim=1)


def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy, the mean over the rows, summed over the tasks."""
    return TASKS * functional.binary_cross_entropy_with_logits(logits, labels)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that all peers have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True, help="folder with ids.npy, scenarios.npy and labels.npy")
    parser.add_argument("--steps", type=int, required=True, help="training steps of one round")
    return parser
