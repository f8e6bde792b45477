"""Makes the feature table of a run, saves the experiment beside it, and summarises the result."""

import logging
import time
from collections.abc import Callable

from pipeline import storage
from pipeline.config.experiment import Experiment
from pipeline.config.load import dump_experiment
from pipeline.preprocess.job import preprocess
from pipeline.table.content_report import report_content
from pipeline.table.entry_counts import describe_entries
from pipeline.table.manifest import Manifest, rows_left_out
from pipeline.table.settings import check_may_overwrite

logger = logging.getLogger(__name__)

SHOWN_VALUES = 12
"""Values of a scenario level that the summary shows."""


def make_run_table(experiment: Experiment, overwrite: bool, connect: Callable[[], None]) -> str:
    """Makes or continues the run's feature table and saves the resolved experiment in its folder; returns a summary.

    Args:
        experiment: the experiment of the run.
        overwrite: rebuild the table from the start.
        connect: connects to Ray, see `preprocess`.

    Raises:
        UserError: as `preprocess` and `connect` do.
    """
    start = time.monotonic()
    table = experiment.table_folder
    if overwrite and experiment.table.path is not None:
        check_may_overwrite(table)
    manifest = preprocess(experiment, table, overwrite, connect)
    text = dump_experiment(experiment)
    if not storage.exists(experiment.file) or storage.read_text(experiment.file) != text:  # else it stays old
        storage.write_text(experiment.file, text)
    content = report_content(experiment.table_experiment, manifest, SHOWN_VALUES)
    for remark in content.remarks:
        logger.warning("%s", remark)
    lines = content.lines + describe_entries(manifest.log_entries)
    return "\n".join([summary(manifest, table, time.monotonic() - start), *(f"  {line}" for line in lines)])


def summary(manifest: Manifest, table: str, seconds: float) -> str:
    """A summary of the table, in a few lines."""
    lines = [f"Feature table: {table} ({seconds:.1f} s)"]
    for split in dict.fromkeys(partition.split for partition in manifest.partitions):
        partitions = manifest.split(split)
        read = sum(partition.rows_read for partition in partitions)
        lines.append(
            f"  {split}: {manifest.rows(split):,} rows in {len(partitions)} partitions "
            f"({read:,} read, {rows_left_out(partitions)})"
        )
    tables = ", ".join(f"{name} {rows:,}" for name, rows in manifest.table_rows.items())
    lines.append(f"  embedding tables, by rows: {tables or 'none'}")
    return "\n".join(lines)
