"""What the end of preprocessing and `inspect` show of the content of a table."""

from dataclasses import dataclass

from pipeline.config.table_experiment import TableExperiment
from pipeline.table.content_text import describe_content
from pipeline.table.manifest import Manifest
from pipeline.table.remarks import remarks
from pipeline.table.settings import DecidingSections
from pipeline.table.split_content import split_contents


@dataclass(frozen=True)
class ContentReport:
    lines: list[str]
    """Counts, one column per split."""
    remarks: list[str]
    """What a person should look at, one sentence each."""


def report_content(
    sections: TableExperiment | DecidingSections, manifest: Manifest, most: int | None = None
) -> ContentReport:
    """The content of a finished table.

    Args:
        sections: of the experiment, or of the table alone.
        most: number of values of a scenario level that are shown; None: all.
    """
    splits = split_contents(manifest)
    return ContentReport(
        describe_content(sections, manifest, splits, most),
        remarks(sections, manifest, splits),
    )
