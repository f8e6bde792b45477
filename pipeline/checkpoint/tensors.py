"""Saves the tensors of a checkpoint and loads them: the files in its folder `data`."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import STATE_DICT_TYPE, Metadata, TensorStorageMetadata

from pipeline import storage
from pipeline.checkpoint.dcp_metadata import OTHER_CHECKPOINT
from pipeline.checkpoint.dcp_storage import SafeReader, writer
from pipeline.checkpoint.format import DATA, START_OVER_HINT, Checkpoint, Written, commit, create_empty_folder, withdraw
from pipeline.errors import UserError
from pipeline.workers.worker import Worker


class SaveFailedError(Exception):
    """A checkpoint could not be written. Raised on every worker."""


def save_checkpoint(
    folder: str,
    step: int,
    tensors: dict[str, Any],
    own: dict[str, torch.Tensor],
    state: dict[str, Any],
    worker: Worker,
    check: Callable[[], None],
) -> Checkpoint:
    """Saves a checkpoint. The marker is written once every worker has written its part. Collective.

    Args:
        folder: for all checkpoints of the run.
        step: steps trained so far.
        tensors: state that is sharded or replicated (model, optimizer).
        own: this worker's own state, name to tensor.
        state: everything else, as JSON.
        worker: this one.
        check: called on the first worker before anything is written; its error is raised on every worker.

    Raises:
        SaveFailedError: on every worker, if any of them could not write its part.
    """
    uri = storage.join(folder, f"step-{step:08d}")
    everything = {**tensors, "own": {str(worker.rank): own}}
    written: dict[str, Written] = {}
    is_begun = False
    try:
        worker.on_first(check)
        worker.on_first(lambda: create_empty_folder(uri))
        is_begun = True
        dcp.save(everything, storage_writer=writer(storage.join(uri, DATA), written), process_group=worker.control)
        gathered = worker.gather(written)
        return worker.on_first(lambda: commit(uri, step, gathered or [], state))
    except (CheckpointException, OSError) as error:  # the first derives from BaseException; raised on every worker
        failures = error.failures.values() if isinstance(error, CheckpointException) else [(error, None)]
        problems = [failure for failure, _ in failures]
        raise worker.on_first(lambda: _save_failed(uri, problems, check if is_begun else None)) from error


def _save_failed(uri: str, problems: list[BaseException], check: Callable[[], None] | None) -> SaveFailedError:
    """Deletes what a failed save has written, which may fill the disk until the next save, and says why it failed.

    Args:
        uri: of the checkpoint.
        problems: the errors of the workers.
        check: raises an error if the folder is now that of another training; None if nothing was written.
    """
    full = next((found for problem in problems if (found := storage.full_disk(uri, problem))), None)
    reason = full or str(problems[0]).strip().rstrip(".")
    try:
        if check is not None:
            check()
            withdraw(uri)
    except (OSError, UserError) as error:
        return SaveFailedError(f"{reason}. Its half-written folder could not be deleted: {error}")
    return SaveFailedError(reason)


class _GrowingPlanner(DefaultLoadPlanner):
    """Loads those rows of a sharded table that the checkpoint has, and leaves the later rows unchanged."""

    def set_up_planner(
        self, state_dict: STATE_DICT_TYPE, metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        super().set_up_planner(state_dict, metadata, is_coordinator)
        assert self.metadata is not None
        sizes = {name: v.size() for name, v in self.state_dict.items() if isinstance(v, ShardedTensor)}
        found = {
            name: replace(saved, size=sizes[name])
            if name in sizes and isinstance(saved, TensorStorageMetadata)
            else saved
            for name, saved in self.metadata.state_dict_metadata.items()
        }
        self.metadata = replace(self.metadata, state_dict_metadata=found)


def load_tensors(
    checkpoint: Checkpoint, tensors: dict[str, Any], worker: Worker, grown: Mapping[str, tuple[int, int]] | None = None
) -> None:
    """Loads into the given tensors, in place, after comparing their names and sizes with the checkpoint's.

    Args:
        checkpoint: the checkpoint.
        tensors: nested by name.
        worker: this one.
        grown: embedding tables that have gained rows: name -> old and new number of rows. Only old rows are loaded.

    Raises:
        UserError: a name or a size differs, or a file of the checkpoint is damaged.
    """
    source = SafeReader(storage.join(checkpoint.uri, DATA))
    try:
        check_tensors(checkpoint, tensors, source.read_metadata().state_dict_metadata, grown or {})
        dcp.load(tensors, storage_reader=source, process_group=worker.control, planner=_GrowingPlanner())
    except CheckpointException as error:  # derives from BaseException
        raise _unreadable(checkpoint, next(iter(error.failures.values()))[0]) from error
    except OSError as error:
        raise _unreadable(checkpoint, error) from error


def _unreadable(checkpoint: Checkpoint, error: BaseException) -> UserError:
    problem = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
    return UserError(f"The checkpoint {checkpoint.uri} cannot be read: {problem}; {OTHER_CHECKPOINT}.")


def check_tensors(
    checkpoint: Checkpoint, tensors: dict[str, Any], found: dict[str, Any], grown: Mapping[str, tuple[int, int]]
) -> None:
    """Raises UserError if a tensor of the model is missing in the checkpoint or has another size there."""
    problems = []
    for name, value in flatten_state_dict(tensors)[0].items():
        if not hasattr(value, "size"):
            continue
        saved = found.get(name)
        if saved is None:
            problems.append(f"{name}: not in the checkpoint")
        elif isinstance(saved, TensorStorageMetadata) and not _fits(name, tuple(saved.size), value, grown):
            problems.append(f"{name}: {tuple(saved.size)} in the checkpoint, {tuple(value.size())} in the model")
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:10])
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise UserError(
            f"The checkpoint {checkpoint.uri} is of another model:\n{shown}{more}\n"
            f"Change the experiment back, or start over: {START_OVER_HINT}."
        )


def _fits(name: str, saved: tuple[int, ...], value: Any, grown: Mapping[str, tuple[int, int]]) -> bool:
    """Whether a saved tensor has the size of this one, or the old number of rows of a table that has grown.

    A table that is sharded column-wise cannot grow: its row-wise moments are longer than the table.
    """
    size = tuple(value.size())
    pairs = [rows for table, rows in grown.items() if f".{table}." in name]
    is_grown = isinstance(value, ShardedTensor) and saved[1:] == size[1:] and (saved[0], size[0]) in pairs
    return saved == size or is_grown


def load_own(checkpoint: Checkpoint, saved_workers: int, like: dict[str, torch.Tensor], worker: Worker) -> list[dict]:
    """Loads the own states of the workers that saved, divided among the current workers: some get several, or none.

    Args:
        checkpoint: the checkpoint.
        saved_workers: how many workers made it.
        like: this worker's own state, for names, sizes and types.
        worker: this one.
    """
    ranks = range(worker.rank, saved_workers, worker.workers)
    own = {str(rank): {name: torch.empty_like(value) for name, value in like.items()} for rank in ranks}
    load_tensors(checkpoint, {"own": own}, worker)
    return list(own.values())
