"""Checkpoints: a folder of torch.distributed.checkpoint files, `state.json`, and a marker written last.

checkpoints/step-00001200/
  data/            weights, optimizer state, and each worker's own state
  state.json       position, schedule inputs, best metric, experiment, fingerprints, versions
  complete.json    the marker, with size and checksum of every file; readers ignore a folder without it

This file needs no torch, because `manygate inspect` needs none; tensors are saved and loaded in `tensors.py`.
"""

import json
import uuid
import zlib
from dataclasses import asdict, dataclass
from typing import Any

from pipeline import storage
from pipeline.checkpoint.choice import BEST, LATEST, CheckpointChoice
from pipeline.checkpoint.state_document import CheckpointState
from pipeline.documents import KNOWN_KEYS_ONLY, RelativePath, parse_document, read_document
from pipeline.errors import UserError

START_OVER_HINT = "delete the run's folder `checkpoints`, or use another `name`"
START_OVER_ADVICE = f"start over: {START_OVER_HINT}"
MARKER = "complete.json"
STATE = "state.json"
DATA = "data"
OWNER = "owner.json"
"""A file in the run's folder with the token of the process that writes its checkpoints."""


@dataclass(frozen=True)
class Written:
    """Size and checksum of a file, recorded when it was written."""

    __pydantic_config__ = KNOWN_KEYS_ONLY

    bytes: int
    crc32: int


@dataclass(frozen=True)
class Marker:
    """The document `complete.json`."""

    __pydantic_config__ = KNOWN_KEYS_ONLY

    step: int
    files: dict[RelativePath, Written]  # by path below the folder


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
    if data is None:
        return None
    if isinstance(data, dict) and "step" in data and not data.keys() & {"files", "version"}:
        raise UserError(
            f"The checkpoint {uri} was saved by an earlier version of Manygate, without checksums, and cannot be used. "
            f"Start over: {START_OVER_HINT}."
        )
    advice = f"delete {uri}, so that the checkpoint before it is used"
    marker = parse_document(data, Marker, file, advice)
    return Checkpoint(uri, marker.step, marker.files)


def find_checkpoint(folder: str, which: CheckpointChoice) -> Checkpoint | None:
    """Finds the checkpoint for `latest`, `best` or a path; None for a word if the folder has no checkpoint.

    Raises:
        UserError: the requested checkpoint does not exist or is not complete.
    """
    if which not in (LATEST, BEST):
        named = _read_marker(storage.join(str(which)))
        if named is None:
            raise UserError(
                f"{which} is not a complete checkpoint: expected a folder such as "
                f"{storage.join(folder, 'step-00001200')} with a {MARKER} in it."
            )
        return named
    complete = complete_checkpoints(folder)
    if which == LATEST or not complete:
        return complete[-1] if complete else None
    state = complete[-1].state()
    best = state.progress.best_step
    if best is None:
        raise UserError(f"No checkpoint in {folder} is the best: {why_no_best(state)}. Use --checkpoint latest.")
    for candidate in complete:
        if candidate.step == best:
            return candidate
    raise UserError(f"The best checkpoint of {folder}, step {best}, no longer exists. Use --checkpoint latest.")


def why_no_best(state: CheckpointState) -> str:
    """Why a run has no best checkpoint so far."""
    training = state.experiment.training
    if training.early_stopping is None:
        return "training.early_stopping, whose metric decides, was not set"
    if state.progress.is_validated(training):
        metric = training.early_stopping.metric
        return f"{metric}, the metric of training.early_stopping, was undefined on the valid split in every validation"
    return "there was no validation yet since training began, or since the last new days were added"


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


def create_empty_folder(uri: str) -> None:
    """Creates an empty folder for a checkpoint. Deletes what a run that died while saving has left in its place."""
    withdraw(uri)
    storage.create_folder(uri)


def withdraw(uri: str) -> None:
    """Deletes a checkpoint, beginning with its marker, so that a half-deleted checkpoint is ignored."""
    folder, name = storage.parent(uri), storage.name(uri)
    storage.delete_file(folder, f"{name}/{MARKER}")
    storage.delete_folder(folder, name)


def commit(uri: str, step: int, gathered: list[dict[str, Written]], state: dict[str, Any]) -> Checkpoint:
    """Writes the state and then the marker, which lists the files that the workers have written."""
    files = {f"{DATA}/{name}": file for written in gathered for name, file in written.items()}
    text = json.dumps(state, indent=1)
    storage.write_text(storage.join(uri, STATE), text)
    files[STATE] = Written(len(text.encode()), zlib.crc32(text.encode()))
    storage.write_json(storage.join(uri, MARKER), asdict(Marker(step, dict(sorted(files.items())))))
    return Checkpoint(uri, step, files)


def prune(folder: str, keep_last: int, keep_every: int | None, best_step: int | None) -> None:
    """Deletes complete checkpoints, except the last `keep_last`, the best, and those at multiples of `keep_every`."""
    for checkpoint in complete_checkpoints(folder)[:-keep_last]:
        if checkpoint.step == best_step or (keep_every is not None and checkpoint.step % keep_every == 0):
            continue
        withdraw(checkpoint.uri)
