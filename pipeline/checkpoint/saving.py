"""Writes checkpoints while training continues: the state is copied, and a thread writes the copy."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import _remote_device
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor

from pipeline.checkpoint.format import Checkpoint
from pipeline.checkpoint.progress import Progress
from pipeline.checkpoint.tensors import SaveFailedError, save_checkpoint
from pipeline.workers.worker import Worker

log = logging.getLogger(__name__)

Best = tuple[float | None, int | None]
"""Value of the early-stopping metric, and its step."""

CLOSE_S = 60  # longest wait of a run that ends with an error for a checkpoint that is being written


class Saver:
    """Runs one save at a time. `settle` finds out whether it succeeded, at the same moments on every worker.

    The best step in the run's progress is always one that can be loaded: `new_best` sets it before its save, and
    `settle` restores the earlier best step if that save failed.
    """

    def __init__(
        self,
        folder: str,
        worker: Worker,
        progress: Progress,
        in_background: bool,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepares to save. Collective.

        Args:
            folder: for all checkpoints of the run.
            worker: this one.
            progress: of the run; its step has just been loaded from a checkpoint, or is 0.
            in_background: copy the state and continue training; else write it before training continues.
            check: called on the first worker before every save; its error ends the run.
        """
        self.saved_step = progress.step or None  # the last step that can be loaded
        self._progress = progress
        self._best_before: Best = (None, None)  # before the last `new_best`
        self._failed_best: Best = (None, None)  # the last best step whose save failed
        self._folder = folder
        self._check = check
        # A separate process group: collectives of a save must not mix with those of training at the same time.
        self._worker = replace(worker, control=dist.new_group(backend="gloo"))
        self._in_background = in_background
        self._thread: threading.Thread | None = None
        self._step = 0
        self._error: BaseException | None = None

    def start(
        self,
        step: int,
        tensors: dict[str, Any],
        own: dict[str, torch.Tensor],
        state: dict[str, Any],
        done: Callable[[Checkpoint, float], None],
    ) -> None:
        """Starts a save, and settles it if saves are not in the background. Collective.

        The previous save must be settled.

        Args:
            step: steps trained so far.
            tensors: sharded or replicated state.
            own: this worker's own state.
            state: everything else.
            done: called in the saving thread of the first worker, with the checkpoint and the seconds that it took.
        """
        if self._in_background:
            tensors, own = copied(tensors), copied(own)
        self._step, self._error = step, None
        save = partial(save_checkpoint, self._folder, step, tensors, own, state, self._worker, self._check)
        self._thread = threading.Thread(target=self._save, args=(save, done), name="manygate-save", daemon=True)
        self._thread.start()
        if not self._in_background:
            self.settle()

    def settle(self) -> None:
        """Waits for the save that was started last, if any, and records its outcome, the same on every worker."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        if self._error is None:
            self.saved_step = self._step
            return
        if not isinstance(self._error, SaveFailedError):
            raise self._error
        progress = self._progress
        if progress.best_step == self._step:
            self._failed_best = (progress.best, progress.best_step)
            progress.best, progress.best_step = self._best_before

    def new_best(self, value: float) -> None:
        """Makes the current step the best one. The previous save must be settled, and this step is saved next."""
        progress = self._progress
        self._best_before = (progress.best, progress.best_step)
        progress.best, progress.best_step = value, progress.step

    def restore_failed_best(self) -> None:
        """Makes the current step the best one again, if its save failed. The step is saved again next."""
        if self._failed_best[1] == self._progress.step:
            self._progress.best, self._progress.best_step = self._failed_best

    def close(self) -> None:
        """Waits up to `CLOSE_S` for a save in progress to end; for a run that ends with an error."""
        if self._thread is not None:
            self._thread.join(CLOSE_S)

    def _save(self, save: Callable[[], Checkpoint], done: Callable[[Checkpoint, float], None]) -> None:
        start = time.perf_counter()
        try:
            saved = save()
            if self._worker.is_first:
                done(saved, time.perf_counter() - start)
        except SaveFailedError as error:
            self._error = error
            if self._worker.is_first:
                log.warning("The checkpoint of step %d could not be saved: %s", self._step, error)
        except BaseException as error:  # noqa: BLE001 - raised again by `settle`
            self._error = error


def copied(value: Any) -> Any:
    """A copy of some state in the memory of the CPU."""
    if isinstance(value, dict):
        return {name: copied(part) for name, part in value.items()}
    if isinstance(value, ShardedTensor):
        shards = [Shard(copied(shard.tensor), _on_cpu(shard.metadata)) for shard in value.local_shards()]
        whole = value.metadata()
        metadata = replace(whole, shards_metadata=[_on_cpu(part) for part in whole.shards_metadata])
        return ShardedTensor._init_from_local_shards_and_global_metadata(
            shards, metadata, process_group=value._process_group
        )
    if torch.is_tensor(value):
        return value.detach().to("cpu", copy=True)
    return value


def _on_cpu(part: ShardMetadata) -> ShardMetadata:
    """The same shard, in the memory of its worker's CPU."""
    rank = part.placement.rank() if part.placement is not None else None
    return replace(part, placement=_remote_device(f"rank:{rank}/cpu"))
