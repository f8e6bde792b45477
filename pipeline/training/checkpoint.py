"""Checkpoints: a folder of torch.distributed.checkpoint files, `state.json`, and a marker written last.

checkpoints/step-00001200/
  data/            weights, optimizer state, and each worker's own state
  state.json       position, schedule inputs, best metric, experiment, fingerprints, versions
  complete.json    the marker: without it the folder does not exist for a reader
"""

import pickle  # noqa: S403 - for the name of its error
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from pipeline import storage
from pipeline.errors import UserError
from pipeline.training.dcp_storage import reader, writer
from pipeline.training.worker import Worker

AFRESH = "delete the run's folder `checkpoints`, or use another `name`"
MARKER = "complete.json"
STATE = "state.json"
DATA = "data"


@dataclass(frozen=True)
class Saved:
    """One complete checkpoint."""

    uri: str
    step: int

    def state(self) -> dict[str, Any]:
        state = storage.read_json(storage.join(self.uri, STATE))
        if not isinstance(state, dict) or not {"progress", "workers", "experiment", "table"} <= state.keys():
            raise UserError(f"The checkpoint {self.uri} has no readable {STATE}: it is damaged; use another.")
        return state


def complete_checkpoints(folder: str) -> list[Saved]:
    """The complete checkpoints of a folder, oldest first."""
    found = []
    for name in storage.list_folder(folder):
        marker = storage.read_json(storage.join(folder, name, MARKER)) if name.startswith("step-") else None
        if marker is not None:
            found.append(Saved(storage.join(folder, name), marker["step"]))
    return sorted(found, key=lambda saved: saved.step)


def find_checkpoint(folder: str, which: str) -> Saved | None:
    """`latest`, `best`, or the path of one; None where `latest` is asked for and there is none.

    Raises:
        UserError: the one that is asked for is not there or not complete.
    """
    if which not in ("latest", "best"):
        marker = storage.read_json(storage.join(which, MARKER))
        if marker is None:
            raise UserError(
                f"{which} is not a complete checkpoint: expected a folder such as {folder}/step-00001200 with a "
                f"{MARKER} in it."
            )
        return Saved(which.rstrip("/"), marker["step"])
    saved = complete_checkpoints(folder)
    if which == "latest" or not saved:
        return saved[-1] if saved else None
    best = saved[-1].state()["progress"]["best_step"]
    if best is None:
        raise UserError(
            f"No best checkpoint is known in {folder}: it needs training.early_stopping. Use --checkpoint latest."
        )
    for candidate in saved:
        if candidate.step == best:
            return candidate
    raise UserError(f"The best checkpoint of {folder}, step {best}, is not there any more. Use --checkpoint latest.")


def save_checkpoint(
    folder: str, step: int, tensors: dict[str, Any], own: dict[str, torch.Tensor], state: dict[str, Any], worker: Worker
) -> Saved:
    """Saves on all workers together; the marker is written when every worker's part is there.

    Args:
        folder: of all checkpoints of the run.
        step: steps trained so far.
        tensors: state that is sharded or replicated (model, optimizer).
        own: this worker's own state, name to tensor.
        state: everything else, as JSON.
        worker: this one.

    Raises:
        SaveFailedError: on every worker, when any of them could not write its part.
    """
    saved = Saved(storage.join(folder, f"step-{step:08d}"), step)
    everything = {**tensors, "own": {str(worker.rank): own}}
    try:
        worker.on_first(lambda: start_afresh(saved))
        dcp.save(everything, storage_writer=writer(storage.join(saved.uri, DATA)), process_group=worker.control)
        worker.on_first(lambda: commit(saved, state))
    except CheckpointException as error:  # derives from BaseException; raised on every worker
        raise SaveFailedError(str(next(iter(error.failures.values()))[0])) from error
    except OSError as error:
        raise SaveFailedError(str(error)) from error
    return saved


class SaveFailedError(Exception):
    """A checkpoint could not be written; raised on every worker alike."""


def start_afresh(saved: Saved) -> None:
    """Makes an empty folder. One left by a run that died while saving goes: its files must not mix with the new."""
    withdraw(saved)
    storage.create_folder(saved.uri)


def withdraw(saved: Saved) -> None:
    """Deletes a checkpoint, its marker first, so that a half-deleted one is none."""
    storage.delete_file(storage.join(saved.uri, MARKER))
    storage.delete_folder(saved.uri)


def commit(saved: Saved, state: dict[str, Any]) -> None:
    storage.write_json(storage.join(saved.uri, STATE), state)
    storage.write_json(storage.join(saved.uri, MARKER), {"step": saved.step})


def load_tensors(saved: Saved, tensors: dict[str, Any], worker: Worker) -> None:
    """Loads into the given tensors, in place, after holding their names and sizes against the checkpoint's.

    Raises:
        UserError: a name or a size differs, or a file of the checkpoint is damaged.
    """
    source = reader(storage.join(saved.uri, DATA))
    try:
        check_tensors(saved, tensors, source.read_metadata().state_dict_metadata)
        dcp.load(tensors, storage_reader=source, process_group=worker.control)
    except CheckpointException as error:  # derives from BaseException
        first = next(iter(error.failures.values()))[0]
        raise UserError(
            f"The checkpoint {saved.uri} cannot be read: {first}. Use another with --resume PATH or --checkpoint PATH."
        ) from error
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"The checkpoint {saved.uri} cannot be read: {error}. Use another one.") from error


def check_tensors(saved: Saved, tensors: dict[str, Any], found: dict[str, Any]) -> None:
    """Raises UserError where the model has a tensor that the checkpoint lacks or holds in another size."""
    from torch.distributed.checkpoint._nested_dict import flatten_state_dict

    problems = []
    for name, value in flatten_state_dict(tensors)[0].items():
        if not hasattr(value, "size"):
            continue
        there = found.get(name)
        if there is None:
            problems.append(f"{name}: not in the checkpoint")
        elif isinstance(there, TensorStorageMetadata) and tuple(there.size) != tuple(value.size()):
            problems.append(f"{name}: {tuple(there.size)} in the checkpoint, {tuple(value.size())} in the model")
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:10])
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise UserError(
            f"The checkpoint {saved.uri} is of another model:\n{shown}{more}\n"
            f"Change the experiment back, or start afresh: {AFRESH}."
        )


def load_own(saved: Saved, saved_workers: int, like: dict[str, torch.Tensor], worker: Worker) -> list[dict]:
    """The own states of the workers that saved, dealt out over the workers there are now: some get several, or none.

    Args:
        saved: the checkpoint.
        saved_workers: how many workers made it.
        like: this worker's own state, for names, sizes and types.
        worker: this one.
    """
    ranks = range(worker.rank, saved_workers, worker.workers)
    own = {str(rank): {name: torch.empty_like(value) for name, value in like.items()} for rank in ranks}
    load_tensors(saved, {"own": own}, worker)
    return list(own.values())


def prune(folder: str, keep_last: int, keep_every: int | None, best_step: int | None) -> None:
    """Deletes complete checkpoints beyond the last few, except every so many steps and the best one."""
    for saved in complete_checkpoints(folder)[:-keep_last]:
        if saved.step == best_step or (keep_every is not None and saved.step % keep_every == 0):
            continue
        withdraw(saved)
