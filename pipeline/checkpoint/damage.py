"""Finds damaged files of a checkpoint, by size and checksum."""

import zlib

from pyarrow import fs

from pipeline import storage
from pipeline.checkpoint.format import Checkpoint, Written
from pipeline.errors import UserError
from pipeline.workers.worker import Worker

CHUNK = 2**24  # bytes per read


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


def find_damage(uri: str, expected: Written) -> str | None:
    """Describes the damage of a file; None if it is as it was written.

    Raises:
        OSError: the store does not answer. The file itself may be sound.
    """
    filesystem, path = storage.resolve(uri)
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.NotFound:
        return "is missing"
    if info.size != expected.bytes:
        return f"has {info.size:,} bytes, and {expected.bytes:,} were written"

    def checksum() -> int:
        crc32 = 0
        with filesystem.open_input_stream(path) as stream:
            while chunk := stream.read(CHUNK):
                crc32 = zlib.crc32(chunk, crc32)
        return crc32

    same = storage.read_again(uri, checksum) == expected.crc32
    return None if same else "has other content than was written (checksum)"
