"""Checkpoints: a folder of torch.distributed.checkpoint files, `state.json`, and a marker written last.

checkpoints/step-00001200/
  data/            weights, optimizer state, and each worker's own state
  state.json       position, schedule inputs, best metric, experiment, fingerprints, versions
  complete.json    the marker, with size and checksum of every file; readers ignore a folder without it
"""

import json
import pickle  # noqa: S403 - for the name of its error
import uuid
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import STATE_DICT_TYPE, Metadata, TensorStorageMetadata

from pipeline import storage
from pipeline.checkpoint.choice import BEST, LATEST, CheckpointChoice
from pipeline.checkpoint.dcp_storage import Written, find_damage, reader, writer
from pipeline.checkpoint.state_document import CheckpointState
from pipeline.documents import KNOWN_KEYS_ONLY, parse_document, read_document
from pipeline.errors import UserError
from pipeline.workers.worker import Worker

START_OVER_HINT = "delete the run's folder `checkpoints`, or use another `name`"
START_OVER_ADVICE = f"start over: {START_OVER_HINT}"
MARKER = "complete.json"
STATE = "state.json"
DATA = "data"
OWNER = "owner.json"
"""A file in the run's folder with the token of the process that writes its checkpoints."""


@dataclass(frozen=True)
class Marker:
    """The document `complete.json`."""

    __pydantic_config__ = KNOWN_KEYS_ONLY

    step: int
    files: dict[str, Written]  # by path below the folder


@dataclass(frozen=True)
class Owner:
    """The document `owner.json`."""

    __pydantic_config__ = KNOWN_KEYS_ONLY

    run: str


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint."""

    uri: str
    step: int
    files: dict[str, Written]  # by path below the folder

    def state(self) -> CheckpointState:
        """Reads everything in the checkpoint that is not a tensor.

        Raises:
            UserError: the file is damaged, or another version has written it.
        """
        state = read_document(storage.join(self.uri, STATE), CheckpointState, START_OVER_ADVICE)
        if state is None:
            raise UserError(f"The checkpoint {self.uri} has no readable {STATE}: it is damaged; use another one.")
        return state


def complete_checkpoints(folder: str) -> list[Checkpoint]:
    """The complete checkpoints of a folder, oldest first."""
    found = []
    for name in storage.list_folder(folder):
        checkpoint = _read_marker(storage.join(folder, name)) if name.startswith("step-") else None
        if checkpoint is not None:
            found.append(checkpoint)
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def _read_marker(uri: str) -> Checkpoint | None:
    file = storage.join(uri, MARKER)
    data = storage.read_json(file)
    if not isinstance(data, dict) or "step" not in data:
        return None
    if "files" not in data:
        raise UserError(
            f"The checkpoint {uri} was saved by an earlier version of Manygate, without checksums, and cannot be used. "
            f"Start over: {START_OVER_HINT}."
        )
    marker = parse_document(data, Marker, file, START_OVER_ADVICE)
    return Checkpoint(uri, marker.step, marker.files)


def find_checkpoint(folder: str, which: CheckpointChoice) -> Checkpoint | None:
    """Finds the checkpoint for `latest`, `best` or a path; None for a word if the folder has no checkpoint.

    Raises:
        UserError: the requested checkpoint does not exist or is not complete.
    """
    if which not in (LATEST, BEST):
        named = _read_marker(str(which).rstrip("/"))
        if named is None:
            raise UserError(
                f"{which} is not a complete checkpoint: expected a folder such as {folder}/step-00001200 with a "
                f"{MARKER} in it."
            )
        return named
    complete = complete_checkpoints(folder)
    if which == LATEST or not complete:
        return complete[-1] if complete else None
    best = complete[-1].state().progress.best_step
    if best is None:
        raise UserError(
            f"No best checkpoint is known in {folder}: this needs training.early_stopping, and a validation after the "
            "last new days were added. Use --checkpoint latest."
        )
    for candidate in complete:
        if candidate.step == best:
            return candidate
    raise UserError(f"The best checkpoint of {folder}, step {best}, no longer exists. Use --checkpoint latest.")


def save_checkpoint(
    folder: str,
    step: int,
    tensors: dict[str, Any],
    own: dict[str, torch.Tensor],
    state: dict[str, Any],
    worker: Worker,
    check: Callable[[], None] = lambda: None,
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
    try:
        worker.on_first(check)
        worker.on_first(lambda: create_empty_folder(uri))
        dcp.save(everything, storage_writer=writer(storage.join(uri, DATA), written), process_group=worker.control)
        gathered = worker.gather(written)
        return worker.on_first(lambda: commit(uri, step, gathered or [], state))
    except CheckpointException as error:  # derives from BaseException; raised on every worker
        raise SaveFailedError(str(next(iter(error.failures.values()))[0])) from error
    except OSError as error:
        raise SaveFailedError(str(error)) from error


def claim(run: str) -> str:
    """Makes this process the only one that writes a run's checkpoints; returns the token for `check_claim`."""
    token = uuid.uuid4().hex
    storage.write_json(storage.join(run, OWNER), asdict(Owner(token)))
    return token


def check_claim(run: str, token: str) -> None:
    """Raises UserError if another process has claimed the run since.

    Workers that Ray has lost contact with may still run after others have taken their place.
    """
    owner = read_document(storage.join(run, OWNER), Owner, "give this run another `name`")
    if owner not in (None, Owner(token)):
        raise UserError(
            f"Another training job has started in {run} after this one, so this one ends: the two would overwrite "
            "each other's checkpoints. Give one of them another `name`."
        )


class SaveFailedError(Exception):
    """A checkpoint could not be written. Raised on every worker."""


def create_empty_folder(uri: str) -> None:
    """Creates an empty folder for a checkpoint. Deletes what a run that died while saving has left in its place."""
    withdraw(uri)
    storage.create_folder(uri)


def withdraw(uri: str) -> None:
    """Deletes a checkpoint, beginning with its marker, so that a half-deleted checkpoint is ignored."""
    storage.delete_file(storage.join(uri, MARKER))
    storage.delete_folder(uri)


def commit(uri: str, step: int, gathered: list[dict[str, Written]], state: dict[str, Any]) -> Checkpoint:
    """Writes the state and then the marker, which lists the files that the workers have written."""
    files = {f"{DATA}/{name}": file for written in gathered for name, file in written.items()}
    text = json.dumps(state, indent=1)
    storage.write_text(storage.join(uri, STATE), text)
    files[STATE] = Written(len(text.encode()), zlib.crc32(text.encode()))
    storage.write_json(storage.join(uri, MARKER), asdict(Marker(step, dict(sorted(files.items())))))
    return Checkpoint(uri, step, files)


def check_files(checkpoint: Checkpoint, worker: Worker) -> str | None:
    """Checks size and checksum of every file of a checkpoint. Each worker checks a share of the files. Collective.

    Returns:
        A description of the first damage; None if all files are as they were written.
    """
    mine = sorted(checkpoint.files.items())[worker.rank :: worker.workers]
    damaged, unanswered = [], None
    try:
        found = {}
        for name, file in mine:
            worker.heartbeat.beat(f"checking {name} of the checkpoint {checkpoint.uri}")
            found[name] = find_damage(storage.join(checkpoint.uri, name), file)
        damaged = [f"{name} {damage}" for name, damage in found.items() if damage is not None]
    except OSError as error:
        unanswered = str(error)
    gathered = worker.gather((damaged, unanswered))

    def judge() -> str | None:
        assert gathered is not None
        errors = [error for _, error in gathered if error is not None]
        if errors:  # the checkpoint may be sound, so an older one must not take its place
            raise UserError(
                f"The checkpoint {checkpoint.uri} cannot be read: {errors[0]}. Try again when its store answers."
            )
        return next((damage for damages, _ in gathered for damage in damages), None)

    return worker.on_first(judge)


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
    source = reader(storage.join(checkpoint.uri, DATA))
    try:
        check_tensors(checkpoint, tensors, source.read_metadata().state_dict_metadata, grown or {})
        dcp.load(tensors, storage_reader=source, process_group=worker.control, planner=_GrowingPlanner())
    except CheckpointException as error:  # derives from BaseException
        first = next(iter(error.failures.values()))[0]
        raise UserError(
            f"The checkpoint {checkpoint.uri} cannot be read: {first}. Use another one with --resume PATH or "
            "--checkpoint PATH."
        ) from error
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"The checkpoint {checkpoint.uri} cannot be read: {error}. Use another one.") from error


def check_tensors(
    checkpoint: Checkpoint, tensors: dict[str, Any], found: dict[str, Any], grown: Mapping[str, tuple[int, int]]
) -> None:
    """Raises UserError if a tensor of the model is missing in the checkpoint or has another size there."""
    from torch.distributed.checkpoint._nested_dict import flatten_state_dict

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


def prune(folder: str, keep_last: int, keep_every: int | None, best_step: int | None) -> None:
    """Deletes complete checkpoints, except the last `keep_last`, the best, and those at multiples of `keep_every`."""
    for checkpoint in complete_checkpoints(folder)[:-keep_last]:
        if checkpoint.step == best_step or (keep_every is not None and checkpoint.step % keep_every == 0):
            continue
        withdraw(checkpoint.uri)
