"""What a run tells while it goes on: `metrics.jsonl`, TensorBoard, a progress bar or log lines."""

import json
import logging
import sys
from typing import TYPE_CHECKING, Any

from pyarrow import fs
from tqdm import tqdm

from pipeline import storage

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)


class MetricsLog:
    """`metrics.jsonl`, one JSON object a line with its `step`. Lines after the resumed step are dropped."""

    def __init__(self, uri: str, resumed_step: int) -> None:
        self._uri = uri
        self._filesystem, self._path = storage.resolve(uri)
        text = storage.read_text(uri) if storage.exists(uri) else ""
        self._lines = [line for line in text.splitlines() if _step_of(line) <= resumed_step]
        if self._lines != text.splitlines() or not text.endswith("\n"):
            self._rewrite()

    def write(self, record: dict[str, Any]) -> None:
        self._lines.append(json.dumps(record))
        if isinstance(self._filesystem, fs.LocalFileSystem):
            with self._filesystem.open_append_stream(self._path) as stream:
                stream.write((self._lines[-1] + "\n").encode())
        else:  # an object store cannot append
            self._rewrite()

    def _rewrite(self) -> None:
        storage.write_text(self._uri, "".join(line + "\n" for line in self._lines))


def _step_of(line: str) -> float:
    """The step of a line; infinity for one that was cut off by a kill, so that it is dropped."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


class RunLog:
    """The first worker's record of a run."""

    def __init__(self, folder: str, resumed_step: int, total_steps: int) -> None:
        self._metrics = MetricsLog(storage.join(folder, "metrics.jsonl"), resumed_step)
        self._board = _open_board(storage.join(folder, "tensorboard"), resumed_step)
        self._bar = tqdm(
            total=total_steps, initial=resumed_step, unit="step", disable=not sys.stderr.isatty(), dynamic_ncols=True
        )

    def step(self) -> None:
        self._bar.update()

    def record(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Writes numbers of one kind (`train`, `valid`, `checkpoint`) at a step; nested ones are joined by slashes."""
        self._metrics.write({"kind": kind, "step": step, **values})
        if self._board:
            for name, value in flatten(values).items():
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def say(self, message: str) -> None:
        """A line for the person who watches."""
        if self._bar.disable:
            log.info(message)
        else:
            tqdm.write(message, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()
        if self._board:
            self._board.close()


def _open_board(uri: str, resumed_step: int) -> "SummaryWriter | None":
    """TensorBoard's writer. It reaches object stores through fsspec alone; without, a run has its metrics.jsonl."""
    from torch.utils.tensorboard import SummaryWriter

    try:
        return SummaryWriter(uri, purge_step=resumed_step + 1)
    except (ImportError, ValueError) as error:
        log.warning("No TensorBoard curves are written to %s: %s", uri, error)
        return None


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of a nested mapping by joined names; what is no number (undefined metrics too) is left out."""
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{name}/"))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[prefix + name] = value
    return flat
