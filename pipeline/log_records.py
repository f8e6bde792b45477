"""Log records as JSON: how they travel from workers to the driver, and through a job's log to the person who reads it.

A document has the keys `time` (ISO 8601, UTC), `level`, `logger`, `run`, `worker` (rank), `step`, `text` and, if the
record reports it, `progress` (see `job_progress.py`). What is unknown is null.
"""

import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

TEXT = logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S")
"""Log lines for people."""

Document = dict[str, Any]


@dataclass
class LogFields:
    """What all records of a process have in common, unless a record itself says something else."""

    run: str | None = None
    worker: int | None = None
    step: int | None = None

    def begin(self, run: str, worker: int | None) -> None:
        """From now on this process works on a run, as a worker of this rank or, with None, as its driver."""
        self.run, self.worker, self.step = run, worker, None


log_fields = LogFields()


class JsonLines(logging.Formatter):
    """One document per line."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(to_document(record))


def to_document(record: logging.LogRecord) -> Document:
    """A record as plain values. The stack trace of an exception is part of the text."""
    text = record.getMessage()
    if record.exc_info:
        text += "\n" + TEXT.formatException(record.exc_info)
    own = record.__dict__
    document = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname,
        "logger": record.name,
        "run": own.get("run", log_fields.run),
        "worker": own.get("worker", log_fields.worker),
        "step": own.get("step", log_fields.step),
        "text": text,
    }
    return {**document, "progress": own["progress"]} if "progress" in own else document


def to_record(document: Document) -> logging.LogRecord:
    """The record of a document.

    Raises:
        ValueError: it is not a document of this module.
    """
    try:
        level = logging.getLevelNamesMapping()[document["level"]]
        created = datetime.fromisoformat(document["time"]).timestamp()
        values = {"name": document["logger"], "levelno": level, "levelname": document["level"], "msg": document["text"]}
        fields = {name: document[name] for name in ("run", "worker", "step") if document[name] is not None}
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a log record: {document!r}") from error
    progress = {"progress": document["progress"]} if "progress" in document else {}
    return logging.makeLogRecord({**values, **fields, **progress, "created": created})


def parse_line(line: str) -> logging.LogRecord | None:
    """The record of a line of a job's log; None for any other line, such as one of a printed table."""
    if not line.startswith('{"time": '):
        return None
    try:
        return to_record(json.loads(line))
    except (ValueError, RecursionError):
        return None
