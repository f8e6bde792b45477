"""The folder of a Ray that we start: its sockets, logs and spilled objects; only its owner can enter it."""

import os
import shutil
import tempfile
import time
from pathlib import Path

from pipeline.errors import UserError

SOCKET_BYTES = 107  # the kernel's limit for the path of a socket
BELOW_FOLDER = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/dash_TaskEventsHead"
"""The longest path that Ray gives to a socket, below the folder."""

FALLBACK = "/tmp"  # noqa: S108 - mkdtemp makes the name in it
NAME = "mg-"
LONGEST_PARENT = SOCKET_BYTES - len(f"/{NAME}12345678") - len(BELOW_FOLDER)
DELETE_S = 10  # longest wait for Ray's processes, which write until they have ended


def make_ray_folder() -> Path:
    """Makes a new folder below TMPDIR, or below /tmp if TMPDIR is too long for the paths of sockets.

    Raises:
        UserError: no folder can be made.
    """
    wanted = tempfile.gettempdir()
    parent = wanted if len(os.fsencode(wanted)) <= LONGEST_PARENT else FALLBACK
    try:
        return Path(tempfile.mkdtemp(prefix=NAME, dir=parent))
    except OSError as error:
        reason = "" if parent == wanted else f", and TMPDIR={wanted} has a path that is too long for Ray's sockets"
        raise UserError(
            f"Ray needs a folder for its sockets and logs: none can be made in {parent} ({error.strerror}){reason}. "
            f"Set TMPDIR to an existing folder that you may write to, with a path of at most {LONGEST_PARENT} bytes."
        ) from error


def ray_files(folder: Path) -> Path:
    """The part of the folder that Ray uses. Ray makes it writable for everyone, which has no effect in our folder."""
    return folder / "ray"


def delete_ray_folder(folder: Path) -> None:
    """Deletes the folder of a Ray that has ended."""
    deadline = time.monotonic() + DELETE_S
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists() or time.monotonic() > deadline:
            return
        time.sleep(0.1)
