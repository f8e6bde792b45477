"""A well-written plain PyTorch loop, a contestant of rounds.py:
`python -m benchmarks.peers.plain_torch --data DIR --steps N`.
"""

from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from benchmarks.peers.problem import (
    BATCH,
    DENSE_LR,
    DIM,
    FEATURES,
    ROWS,
    SCENARIO_DIM,
    SCENARIOS,
    TABLE_LR,
    Data,
    Mmoe,
    arguments,
    loss_of,
)
from benchmarks.rounds import serve

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Batches(IterableDataset[Batch]):
    """Endless whole batches, dealt to the loader's workers in turn; ids are rows of the one fused table."""

    def __init__(self, data: Data) -> None:
        self._data = data

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        batch, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        first_rows = torch.arange(FEATURES) * ROWS
        while True:
            rows = self._data.rows_of(batch)
            ids = torch.from_numpy(self._data.ids[rows].copy()) + first_rows
            scenarios = torch.from_numpy(self._data.scenarios[rows].copy())
            yield ids, scenarios, torch.from_numpy(self._data.labels[rows].copy())
            batch += stride


class Model(nn.Module):
    """All features' tables as one with sparse gradients, then the experts."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.Embedding(FEATURES * ROWS, DIM, sparse=True)
        nn.init.uniform_(self.tables.weight, -(ROWS**-0.5), ROWS**-0.5)
        self.scenario = nn.Embedding(SCENARIOS, SCENARIO_DIM)
        self.mmoe = Mmoe()

    def forward(self, ids: torch.Tensor, scenarios: torch.Tensor) -> torch.Tensor:
        """Logits of a batch."""
        return self.mmoe(torch.cat([self.tables(ids).flatten(1), self.scenario(scenarios)], dim=1))


class Training:
    """A model, its two optimizers and its batches."""

    def __init__(self, data: Data, loader_workers: int) -> None:
        torch.manual_seed(0)
        self._model = Model()
        tables = self._model.tables.weight
        dense = [parameter for parameter in self._model.parameters() if parameter is not tables]
        self._optimizers = (
            torch.optim.Adagrad([tables], lr=TABLE_LR),
            torch.optim.Adam(dense, lr=DENSE_LR, fused=True),
        )
        self._batches = iter(DataLoader(Batches(data), batch_size=None, num_workers=loader_workers))

    def step(self) -> torch.Tensor:
        """Trains on the next batch and returns its loss."""
        ids, scenarios, labels = next(self._batches)
        loss = loss_of(self._model(ids, scenarios), labels)
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in self._optimizers:
            optimizer.step()
        return loss.detach()

    def round(self, steps: int) -> float:
        """Trains for some steps and returns the number of samples."""
        for _ in range(steps):
            self.step()
        return steps * BATCH


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--loader-workers", type=int, default=0, help="processes of the DataLoader")
    options = parser.parse_args()
    training = Training(Data.open(options.data), options.loader_workers)
    serve(lambda: training.round(options.steps), loader_workers=options.loader_workers)


if __name__ == "__main__":
    main()
