"""torch-rechub's own MMOE, DataGenerator and MTLTrainer, as its examples use them; a contestant of rounds.py:
`python -m benchmarks.peers.rechub_mmoe --data DIR --steps N`.

The differences from the other peers come from the library: batch normalisation in every MLP, the mean of the task
losses, weight decay, and dense gradients of the tables, so that Adam updates whole tables. There is no scenario
embedding, because the library accepts only tables of one width.
"""

import itertools

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch_rechub.basic.features import SparseFeature
from torch_rechub.models.multi_task import MMOE
from torch_rechub.trainers import MTLTrainer
from torch_rechub.utils.data import DataGenerator

from benchmarks.peers.problem import (
    BATCH,
    DIM,
    EXPERT_HIDDEN,
    EXPERTS,
    FEATURES,
    ROWS,
    TASKS,
    TOWER_HIDDEN,
    Data,
    arguments,
)
from benchmarks.rounds import serve

TASK_TYPES = ["classification"] * TASKS


def feature_name(number: int) -> str:
    """The name of a feature by its column."""
    return f"feature_{number}"


def build_trainer() -> MTLTrainer:
    """The library's trainer with its default optimizer, around the library's model."""
    torch.manual_seed(0)
    model = MMOE(
        [SparseFeature(feature_name(number), vocab_size=ROWS, embed_dim=DIM) for number in range(FEATURES)],
        TASK_TYPES,
        n_expert=EXPERTS,
        expert_params={"dims": list(EXPERT_HIDDEN)},
        tower_params_list=[{"dims": [TOWER_HIDDEN]} for _ in range(TASKS)],
    )
    return MTLTrainer(model, TASK_TYPES, device="cpu")


def loader_of(data: Data, batches: range, workers: int) -> DataLoader:
    """The library's loader over some batches of the data."""
    rows = [data.rows_of(batch) for batch in batches]
    ids = np.concatenate([data.ids[part] for part in rows])
    labels = np.concatenate([data.labels[part] for part in rows])
    columns = {feature_name(number): np.ascontiguousarray(ids[:, number]) for number in range(FEATURES)}
    train, _, _ = DataGenerator(columns, labels).generate_dataloader(
        x_val=columns, y_val=labels, x_test=columns, y_test=labels, batch_size=BATCH, num_workers=workers
    )
    return train


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--loader-workers", type=int, default=0, help="processes of the DataLoader")
    options = parser.parse_args()
    data, trainer, rounds = Data.open(options.data), build_trainer(), itertools.count()

    def epoch() -> float:
        first = next(rounds) * options.steps
        trainer.train_one_epoch(loader_of(data, range(first, first + options.steps), options.loader_workers))
        return options.steps * BATCH

    serve(epoch, loader_workers=options.loader_workers)


if __name__ == "__main__":
    main()
