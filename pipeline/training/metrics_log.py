"""The output of a run in progress: `metrics.jsonl`, TensorBoard curves, and a progress bar or log lines."""

import json
import logging
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyarrow import fs
from tqdm import tqdm

from pipeline import storage
from pipeline.job_progress import JobProgress, reported
from pipeline.run_folder import METRICS_FILE

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)

_REWRITE_EVERY_S = 30.0


class MetricsLog:
    """`metrics.jsonl`: one JSON object per line, with its `step`. Lines after the resumed step are dropped.

    On a local disk each line is appended at once. An object store cannot append, so the whole file is written again
    at intervals. If the store fails, the run continues: lines are kept, and written when the store answers again.
    """

    def __init__(self, uri: str, resumed_step: int) -> None:
        self._uri = uri
        self._filesystem, self._path = storage.resolve(uri)
        text = storage.read_text(uri, errors="replace") if storage.exists(uri) else ""
        self._lines = [line for line in text.splitlines() if _step_of(line) <= resumed_step]
        self._is_written = self._lines == text.splitlines() and text.endswith("\n")
        self._has_warned = False
        self._due_at = time.monotonic() + _REWRITE_EVERY_S
        if not self._is_written:
            self._rewrite()

    def write(self, record: dict[str, Any]) -> None:
        self._lines.append(json.dumps(record))
        if self._is_written and isinstance(self._filesystem, fs.LocalFileSystem):
            self._try(self._append)
            return
        self._is_written = False
        if time.monotonic() >= self._due_at:
            self.flush()

    def flush(self) -> None:
        """Brings the file up to date, or warns.

        Called before a checkpoint is complete, because a resume keeps the lines up to the checkpoint's step.
        """
        if not self._is_written:
            start = time.monotonic()
            self._try(self._rewrite)
            # A store that is down may take long to fail: the interval leaves most of the time to training.
            now = time.monotonic()
            self._due_at = now + max(_REWRITE_EVERY_S, 10 * (now - start))

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            self._is_written = False
            if not self._has_warned:
                log.warning("%s cannot be written; its lines are kept and written later: %s", self._uri, error)
            self._has_warned = True

    def _append(self) -> None:
        with self._filesystem.open_append_stream(self._path) as stream:
            stream.write((self._lines[-1] + "\n").encode())

    def _rewrite(self) -> None:
        storage.write_text(self._uri, "".join(line + "\n" for line in self._lines))
        self._is_written, self._has_warned = True, False


def _step_of(line: str) -> float:
    """The step of a line; infinity for a line that was cut off by a kill, so that it is dropped."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf")


class RunLog:
    """The first worker's record of a run."""

    def __init__(self, folder: str, resumed_step: int) -> None:
        self._metrics = MetricsLog(storage.join(folder, METRICS_FILE), resumed_step)
        self._board = _open_board(storage.join(folder, "tensorboard"), resumed_step)
        self._bar = tqdm(initial=resumed_step, unit="step", disable=not sys.stderr.isatty(), dynamic_ncols=True)

    def expect(self, total_steps: int) -> None:
        """Sets the step at which training will end, for the progress bar."""
        self._bar.total = total_steps
        self._bar.refresh()

    def step(self) -> None:
        self._bar.update()

    def record(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Writes values of one kind (`train` or `valid`) at a step. TensorBoard names join nested keys by slashes."""
        self._metrics.write({"kind": kind, "step": step, **values})
        if self._board:
            try:
                for name, value in flatten(values).items():
                    self._board.add_scalar(f"{kind}/{name}", value, step)
            except Exception as error:  # noqa: BLE001 - boto3 and fsspec raise their own errors
                self._lose_board(error)

    def show(self, message: str, progress: JobProgress) -> None:
        """Logs a line that reports progress."""
        log.info(message, extra=reported(progress))

    def flush(self) -> None:
        """Brings `metrics.jsonl` up to date; must be called before a checkpoint is complete."""
        self._metrics.flush()

    def close(self) -> None:
        self._metrics.flush()
        self._bar.close()
        if self._board:
            try:
                self._board.close()
            except Exception as error:  # noqa: BLE001 - as above
                self._lose_board(error)

    def _lose_board(self, error: Exception) -> None:
        log.warning("TensorBoard curves end here; metrics.jsonl continues: %s", error)
        self._board = None


def _open_board(uri: str, resumed_step: int) -> "SummaryWriter | None":
    """TensorBoard's writer; None if it cannot write there. For object stores it needs fsspec."""
    from torch.utils.tensorboard import SummaryWriter

    if storage.has_options(uri):
        log.warning(
            "No TensorBoard curves are written to %s: TensorBoard ignores the options of a URI. For an S3 service "
            "other than Amazon's, set AWS_ENDPOINT_URL in place of them.",
            uri,
        )
        return None
    try:
        return SummaryWriter(uri, purge_step=resumed_step + 1)
    except Exception as error:  # noqa: BLE001 - as above
        log.warning("No TensorBoard curves are written to %s: %s", uri, error)
        return None


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of a nested mapping by joined names. Other values, such as undefined metrics, are left out."""
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{name}/"))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[prefix + name] = value
    return flat
