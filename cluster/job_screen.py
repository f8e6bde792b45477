"""What `manygate status JOB` prints: one screen of 80 columns and 24 lines."""

import textwrap
import time
from dataclasses import dataclass

from pipeline.job_progress import JobProgress, latest
from pipeline.log_records import TEXT, parse_line
from pipeline.metrics.formatting import format_values

COLUMNS, LINES = 80, 24
LABEL = 14  # columns of the label that a line begins with
TRAIN = 28  # columns of the metrics of training


@dataclass(frozen=True)
class JobState:
    """What Ray knows about a job. Times are in seconds since 1970."""

    name: str
    status: str  # PENDING, RUNNING, STOPPED, SUCCEEDED, FAILED
    command: str
    started: float | None
    ended: float | None
    ending: str | None  # exit code and message, if it has ended


@dataclass(frozen=True)
class JobLog:
    """What a job's log says about it."""

    progress: JobProgress
    last_line: str | None


def read_log(text: str) -> JobLog:
    """Reads a job's log, in which lines that are no records are printed tables and messages of other programs."""
    lines = [line for line in text.splitlines() if line.strip()]
    records = [record for line in lines if (record := parse_line(line)) is not None]
    return JobLog(latest(records), rendered(lines[-1]).splitlines()[-1] if lines else None)


def rendered(line: str) -> str:
    """A line of a job's log as text for people."""
    record = parse_line(line)
    return line if record is None else TEXT.format(record)


class LogText:
    """A log that arrives in pieces, as text for people or, with `as_json`, as the job wrote it."""

    def __init__(self, as_json: bool) -> None:
        self._rest, self._as_json = "", as_json

    def add(self, piece: str) -> str:
        """The text of the lines that this piece completes."""
        if self._as_json:
            return piece
        *lines, self._rest = (self._rest + piece).split("\n")
        return "".join(rendered(line) + "\n" for line in lines)

    def end(self) -> str:
        """The text of the last line, if it has no end."""
        rest, self._rest = self._rest, ""
        return rendered(rest)


def screen(job: JobState, log: JobLog, now: float) -> str:
    """The screen of a job.

    Args:
        job: from Ray.
        log: from the job's log.
        now: seconds since 1970.
    """
    progress = log.progress
    top = [*_state_lines(job, now), ""]
    if progress == JobProgress():
        top.append(_line("progress", "none reported yet" if job.ended is None else "none reported"))
    top += [*_stage_lines(progress), *_speed_lines(progress, is_running=job.ended is None)]
    top += [*_checkpoint_lines(progress, now), *_worker_lines(progress)]
    bottom = ["", _line("last line", log.last_line)] if log.last_line else []
    metrics = _metric_lines(progress, LINES - len(top) - len(bottom))
    return "\n".join(line[:COLUMNS].rstrip() for line in [*top, *metrics, *bottom])


def duration(seconds: float) -> str:
    """A time in its two largest units: `2 h 5 min`."""
    whole = max(round(seconds), 0)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def _state_lines(job: JobState, now: float) -> list[str]:
    state = job.status
    if job.started is not None:
        state += f" {'for' if job.ended is None else 'after'} {duration((job.ended or now) - job.started)}"
    lines = [f"{job.name}: {state}", _line("command", job.command), _line("started", when(job.started))]
    if job.ended is not None:
        text = f"{when(job.ended)}{f'; {job.ending}' if job.ending else ''}"
        first, *others = textwrap.wrap(text, COLUMNS - LABEL, max_lines=5, placeholder=" ...")
        lines += [_line("ended", first), *(_line("", other) for other in others)]
    return lines


def _stage_lines(progress: JobProgress) -> list[str]:
    lines = []
    if progress.rows is not None and progress.total_rows is not None and progress.stage is not None:
        lines.append(_line("stage", f"{progress.stage}: {_of(progress.rows, progress.total_rows)} rows"))
    if progress.step is not None:
        reached = f"{progress.step:,}" if progress.total_steps is None else _of(progress.step, progress.total_steps)
        epoch = "" if progress.epoch is None else f", epoch {progress.epoch}"
        lines.append(_line("training", f"step {reached}{epoch}"))
    return lines


def _speed_lines(progress: JobProgress, is_running: bool) -> list[str]:
    lines = []
    if progress.samples_per_second is not None and progress.data_wait is not None:
        speed, wait = f"{progress.samples_per_second:,.0f} samples/s", f"{progress.data_wait:.1%} of the time"
        lines += [_line("speed", speed), _line("data wait", wait)]
    if is_running and progress.eta_s is not None:
        lines.append(_line("time left", f"about {duration(progress.eta_s)}"))
    return lines


def _checkpoint_lines(progress: JobProgress, now: float) -> list[str]:
    saved = progress.checkpoint
    if saved is None:
        return []
    age = "saved by an earlier job" if saved.time is None else f"{duration(now - saved.time)} ago"
    room = COLUMNS - LABEL
    uri = saved.uri if len(saved.uri) <= room else "..." + saved.uri[3 - room :]  # its end names the run and the step
    return [_line("checkpoint", f"step {saved.step:,}, {age}"), _line("", uri)]


def _worker_lines(progress: JobProgress) -> list[str]:
    lines = []
    if progress.workers is not None:
        total = sum(part.count for part in progress.workers)
        places = ", ".join(map(str, progress.workers))
        lines.append(_line("workers", f"{total}: {places}"))
    if progress.restarts is not None:
        lines.append(_line("restarts", str(progress.restarts)))
    return lines


def _metric_lines(progress: JobProgress, room: int) -> list[str]:
    """One line per task, in at most `room` lines."""
    train, validation = progress.metrics or {}, progress.validation or {}
    tasks = list(dict.fromkeys([*train, *validation]))
    if not tasks:
        return []
    steps = "" if progress.validation_step is None else f"validation, step {progress.validation_step:,}"
    lines = ["", _line("metrics", f"{'training' if train else '':<{TRAIN}}{steps}")]
    for task in tasks:
        values = f"{format_values(train.get(task, {})):<{TRAIN}}{format_values(validation.get(task, {}))}"
        lines.append(_line(f"  {task}", values))
    if len(lines) > room:
        lines = [*lines[: room - 1], f"  ... and {len(lines) - room + 1} more tasks: see manygate logs"]
    return lines


def _of(done: int, total: int) -> str:
    return f"{done:,} of {total:,}{f' ({done / total:.0%})' if total else ''}"


def _line(label: str, value: str) -> str:
    """A label and a value, both cut where their room ends."""
    return f"{_cut(label, LABEL - 1):<{LABEL}}{_cut(value, COLUMNS - LABEL)}"


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 3] + "..."


def when(seconds: float | None) -> str:
    """A time as a date and a time of day, in the time zone of this machine."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "-"
