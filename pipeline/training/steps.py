"""Two ways of doing the same step: plain, or with the exchange of ids overlapped."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Protocol

import torch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from pipeline.loading.batch import Batch
from pipeline.sharding.module import StepOutput
from pipeline.sharding.shard import ShardedModel


class Step(Protocol):
    """Takes the next batch and trains on it; returns None if no batch is left."""

    def __call__(self, batches: Iterator[Batch]) -> StepOutput | None: ...

    def paused(self) -> AbstractContextManager[None]:
        """A context in which the model can be used for something else, such as validation."""
        ...

    def forget(self) -> None:
        """Drops batches that were read ahead, because the next step reads other data."""
        ...


class PlainStep:
    """The reference: forward, backward and update of one batch after another."""

    def __init__(self, model: ShardedModel, device: torch.device) -> None:
        self._module, self._optimizer, self._device = model.module, model.optimizer, device

    def __call__(self, batches: Iterator[Batch]) -> StepOutput | None:
        batch = next(batches, None)
        if batch is None:
            return None
        self._optimizer.zero_grad()  # also passes the learning rate to the fused kernels
        loss, output = self._module(batch.to(self._device, non_blocking=True))
        loss.backward()  # also updates the embedding tables
        self._optimizer.step()
        return output

    def paused(self) -> AbstractContextManager[None]:
        return nullcontext()

    def forget(self) -> None:
        pass


class PipelinedStep:
    """TorchRec's sparse pipeline: while a batch is trained on, the ids of the next are already exchanged.

    It reads batches ahead. The position to save is the output's, which belongs to the batch that was trained on.
    """

    def __init__(self, model: ShardedModel, device: torch.device) -> None:
        self._new = partial(TrainPipelineSparseDist, model.module, model.optimizer, device, execute_all_batches=True)
        self._pipeline = self._new()

    def __call__(self, batches: Iterator[Batch]) -> StepOutput | None:
        try:
            return self._pipeline.progress(batches)
        except StopIteration:
            return None

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._pipeline.detach()
        try:
            yield
        finally:
            self._pipeline.attach()

    def forget(self) -> None:
        self._pipeline.detach()
        self._pipeline = self._new()


def choose_step(loop: str, model: ShardedModel, device: torch.device) -> Step:
    """The step for `training.loop`."""
    if loop == "pipelined" or (loop == "auto" and device.type == "cuda"):
        return PipelinedStep(model, device)
    return PlainStep(model, device)
