"""Pickles that would run code, for tests that they do not."""

import functools
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Call:
    """An object whose pickle calls a function when it is read."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


def _system(marker: Path) -> Any:
    return Call(os.system, (f"touch {marker}",))  # noqa: S605


def _popen(marker: Path) -> Any:
    return Call(subprocess.Popen, (["touch", str(marker)],))


def _eval(marker: Path) -> Any:
    return Call(eval, (f"open({str(marker)!r}, 'w')",))


def _partial(marker: Path) -> Any:
    return Call(functools.partial(os.system, f"touch {marker}"), ())  # type: ignore[arg-type] # noqa: S605


def _nested(marker: Path) -> Any:
    return Call(subprocess.call, (Call(eval, (f"['touch', {str(marker)!r}]",)),))


CALLS: list[Callable[[Path], Any]] = [_system, _popen, _eval, _partial, _nested]


def touches(marker: Path) -> None:
    """Waits for the file of a call, which may come from another process, and removes it."""
    while not marker.exists():
        time.sleep(0.01)
    marker.unlink()
