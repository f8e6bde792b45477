"""Manygate as a contestant: `python -m benchmarks.own WHAT --folder DIR`, or under torchrun for more workers.

disk       the whole trainer: feature table, read-ahead, step, running metrics, log lines
memory     the trainer's step alone, on batches held in memory
dense      forward and backward of the dense part, and its optimizer, on embeddings held in memory
embedding  lookup, gradient and update of the tables, on gradients held in memory
"""

import argparse
import sys
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

from benchmarks import workload
from benchmarks.rounds import Turns
from pipeline.config.experiment import Experiment
from pipeline.evaluation.split_evaluation import split_reader
from pipeline.loading.batch import Batch
from pipeline.loading.position import Position
from pipeline.sharding.module import TrainingModule
from pipeline.sharding.shard import ShardedModel, shard
from pipeline.table.manifest import read_manifest
from pipeline.training.metrics_log import RunLog
from pipeline.training.run import fresh_state
from pipeline.training.state import run_settings
from pipeline.training.steps import choose_step
from pipeline.training.trainer import Trainer
from pipeline.training.windows import train_reader
from pipeline.workers.launch import run_without_ray
from pipeline.workers.worker import Worker

HELD = 64  # batches in memory


class Over(Exception):
    """All rounds have been played."""


class Rounds:
    """Replaces validation: the trainer calls it at a fixed interval of steps and does not count its time."""

    def __init__(self, worker: Worker, turns: Turns | None, samples: int) -> None:
        self._worker, self._turns, self._samples = worker, turns, samples
        self._start: float | None = None

    def __call__(self) -> dict[str, Any]:
        """Reports the round and waits for the next one, on all workers. The first call ends the warm-up."""
        if not self._worker.on_first(self._next):
            raise Over
        return {"tasks": {}}

    def _next(self) -> bool:
        turns = self._turns
        assert turns is not None
        if self._start is None:
            turns.ready()
        else:
            turns.done(self._samples, time.perf_counter() - self._start)
        has_next = turns.wait()
        self._start = time.perf_counter()
        return has_next


def from_disk(worker: Worker, made: Experiment, turns: Turns | None, steps: int) -> None:
    """Trains as `manygate train` does."""
    manifest = read_manifest(made.table_folder)
    state = fresh_state(made, manifest, worker)
    run_log = RunLog(made.folder, 0) if worker.is_first else None
    rounds = Rounds(worker, turns, steps * made.training.global_batch_size)
    trainer = Trainer(made, state, run_settings(made, manifest, worker), run_log, rounds)
    trainer.train(train_reader(made, manifest, worker, state.progress.window))


def in_memory(
    prepare: Callable[[ShardedModel, list[Batch], Worker], Callable[[], None]],
) -> Callable[[Worker, Experiment, Turns | None, int], None]:
    """A body that repeats the step that `prepare` makes from the model and batches in memory."""

    def body(worker: Worker, made: Experiment, turns: Turns | None, steps: int) -> None:
        model = shard(made, workload.inputs_of(made), worker)
        reader = split_reader(made, made.table_folder, read_manifest(made.table_folder), "train", worker, [])
        step = prepare(model, list(islice(reader.epoch(Position()), HELD)), worker)
        rounds = Rounds(worker, turns, steps * made.training.global_batch_size)
        while True:
            for _ in range(steps):
                step()
            rounds()

    return body


def whole_step(model: ShardedModel, batches: list[Batch], worker: Worker) -> Callable[[], None]:
    step, endless = choose_step("auto", model, worker.device), cycle(batches)
    return lambda: None if step(endless) else None


def dense_alone(model: ShardedModel, batches: list[Batch], worker: Worker) -> Callable[[], None]:
    module = training_module(model)
    batches = [batch.to(worker.device) for batch in batches]
    held = [module.embedding(batch.ids, batch.sequences, batch.numerics).cut() for batch in batches]
    endless = cycle(zip(batches, held, strict=True))
    _, optimizer = model.optimizer.optimizers  # the fused optimizer, then that of the dense part

    def step() -> None:
        batch, embedded = next(endless)
        for tensor in embedded.looked_up:
            tensor.grad = None
        optimizer[1].zero_grad()
        module.dense(embedded, batch)[0].backward()
        optimizer[1].step()

    return step


def embedding_alone(model: ShardedModel, batches: list[Batch], worker: Worker) -> Callable[[], None]:
    module = training_module(model)
    batches = [batch.to(worker.device) for batch in batches]
    first = module.embedding(batches[0].ids, batches[0].sequences, batches[0].numerics)
    gradients = [torch.randn_like(tensor) / len(tensor) for tensor in first.looked_up]
    endless = cycle(batches)

    def step() -> None:
        batch = next(endless)
        model.module.fused_optimizer.zero_grad()
        embedded = module.embedding(batch.ids, batch.sequences, batch.numerics)
        torch.autograd.backward(embedded.looked_up, gradients)

    return step


def training_module(model: ShardedModel) -> TrainingModule:
    return next(module for module in model.module.modules() if isinstance(module, TrainingModule))


BODIES = {
    "disk": from_disk,
    "memory": in_memory(whole_step),
    "dense": in_memory(dense_alone),
    "embedding": in_memory(embedding_alone),
}


def main() -> None:
    """Runs the contestant that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=BODIES)
    parser.add_argument("--folder", type=Path, required=True, help="the folder that workload.prepare has filled")
    parser.add_argument("--steps", type=int, default=20, help="steps per round")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    arguments = parser.parse_args()
    made = workload.experiment(
        arguments.folder,
        precision=arguments.precision,
        validate_every_steps=arguments.steps,
    )
    made = made.model_copy(update={"name": f"run-{arguments.what}-{arguments.precision}"})

    def body(worker: Worker) -> None:
        turns = Turns() if worker.is_first else None
        BODIES[arguments.what](worker, made, turns, arguments.steps)

    try:
        run_without_ray(body, "auto")
    except Over:
        sys.exit(0)


if __name__ == "__main__":
    main()
