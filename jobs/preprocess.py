"""`manygate preprocess`: logs in, feature table out."""

import time

from cluster.connect import connect
from pipeline import storage
from pipeline.config.experiment import Experiment
from pipeline.config.load import dump_experiment
from pipeline.preprocess.job import preprocess
from pipeline.table.manifest import Manifest
from pipeline.table.settings import check_may_overwrite


def run(experiment: Experiment, overwrite: bool) -> None:
    """Makes or continues the run's feature table, saves the resolved experiment beside it, prints a summary.

    Raises:
        UserError: as `preprocess` and `connect` do.
    """
    start = time.monotonic()
    table = experiment.table_folder
    if overwrite and experiment.table.path is not None:
        check_may_overwrite(table)
    manifest = preprocess(experiment, table, overwrite, connect)
    storage.write_text(storage.join(experiment.folder, "experiment.yaml"), dump_experiment(experiment))
    print(summary(manifest, table, time.monotonic() - start))


def summary(manifest: Manifest, table: str, seconds: float) -> str:
    """What was made, in a few lines."""
    lines = [f"Feature table: {table} ({seconds:.1f} s)"]
    for split in dict.fromkeys(partition.split for partition in manifest.partitions):
        partitions = manifest.split(split)
        read = sum(partition.rows_read for partition in partitions)
        quarantined = sum(partition.quarantined for partition in partitions)
        filtered = sum(partition.filtered for partition in partitions)
        lines.append(
            f"  {split}: {manifest.rows(split):,} rows in {len(partitions)} partitions "
            f"({read:,} read, {quarantined:,} quarantined, {filtered:,} filtered out)"
        )
    tables = ", ".join(f"{name} {rows:,}" for name, rows in manifest.table_rows.items())
    lines.append(f"  embedding tables, by rows: {tables or 'none'}")
    return "\n".join(lines)
