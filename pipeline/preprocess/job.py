"""The preprocessing job, from the experiment to the manifest."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.config.experiment import Experiment
from pipeline.config.logs import Logs
from pipeline.errors import UserError
from pipeline.preprocess.columns import table_kind
from pipeline.preprocess.commit import read_committed, transform_partitions
from pipeline.preprocess.discover import (
    Found,
    LogPartition,
    PartitionFiles,
    find_partitions,
    read_files,
)
from pipeline.preprocess.encode import ENCODERS, INDEX, load_encoders
from pipeline.preprocess.fit import WORK, fit_encoders
from pipeline.preprocess.plan import Plan, columns_in_words, make_plan
from pipeline.preprocess.sections import Sections
from pipeline.preprocess.transform import Transform
from pipeline.preprocess.units import cut_units
from pipeline.table.manifest import MANIFEST, Manifest, Partition, read_manifest, write_manifest
from pipeline.table.settings import (
    COLUMNS,
    SETTINGS,
    check_same_settings,
    check_splits,
    fingerprint,
    table_settings,
)

logger = logging.getLogger(__name__)


def preprocess(
    experiment: Experiment, table: str, overwrite: bool = False, connect: Callable[[], None] = lambda: None
) -> Manifest:
    """Makes the feature table of an experiment, or continues one: partitions that it has are kept.

    Args:
        table: folder or URI of the feature table.
        overwrite: delete a table that is there first, once the logs are known to be fit.
        connect: connects to Ray, where that is not done; called only when the logs are fit and there is work.

    Raises:
        UserError: the logs do not fit the experiment (nothing is written then), the table was made with other
            settings, a file cannot be read, or too many rows cannot be used.
    """
    table = storage.absolute(table)
    sections = Sections(experiment.logs, experiment.features, experiment.scenarios, experiment.tasks, experiment.table)
    continued = not overwrite and check_same_settings(table, table_settings(sections))
    committed = read_committed(table) if continued else []
    check_splits(sections.logs, table, {partition.value: partition.split for partition in committed})
    found = find_partitions(sections.logs, [LogPartition(p.split, p.value) for p in committed])
    known = {partition.value for partition in committed}
    todo = [partition for partition in found.partitions if partition.value not in known]
    files = read_files(sections.logs, todo)
    if found.ignored:
        logger.info("partitions in no split, left alone: %s", ", ".join(found.ignored))
    if files:
        plan = make_plan(sections, table, [file for partition in files for file in partition.files])
        connect()
        _run(plan, files, continued)
    manifest = _make_manifest(sections, table, found)
    if storage.read_json(storage.join(table, MANIFEST)) is not None and read_manifest(table) == manifest:
        logger.info("the feature table has all partitions of the logs: nothing to do")
        return manifest
    check_no_split_is_empty(sections.logs, manifest)
    storage.delete_folder(storage.join(table, WORK))
    write_manifest(table, manifest)
    return manifest


def _run(plan: Plan, files: list[PartitionFiles], continued: bool) -> None:
    """Fits the encoders, where that is not done yet, and transforms the partitions."""
    index = storage.read_json(storage.join(plan.table, ENCODERS, INDEX)) if continued else None
    if index is None:
        units = [unit for f in files if f.partition.split == "train" for unit in cut_units(f)]
        if not units:
            raise UserError("logs.splits.train: its partitions have no rows, so nothing can be fitted.")
    else:
        _check_kinds(plan, index)
    if continued:
        plan = _with_earlier_columns(plan)
    else:
        _begin(plan)
    if index is None:
        fit_encoders(plan, units)
    else:
        logger.info("the encoders that exist are used")
    transform_partitions(Transform(plan, load_encoders(plan.sections, plan.table)), files)


def _begin(plan: Plan) -> None:
    """Clears the folder, and writes what later runs are held against: the settings last."""
    for name in (MANIFEST, SETTINGS):  # first, so that a half-deleted table is none
        storage.delete_file(storage.join(plan.table, name))
    storage.delete_folder(plan.table)
    storage.create_folder(plan.table)
    filesystem, path = storage.resolve(storage.join(plan.table, COLUMNS))
    pq.write_table(plan.schema.empty_table(), path, filesystem=filesystem)
    storage.write_json(storage.join(plan.table, SETTINGS), table_settings(plan.sections))


def check_no_split_is_empty(logs: Logs, manifest: Manifest) -> None:
    """Raises UserError where nothing of a split is left to train on or to evaluate."""
    for split in logs.splits:
        partitions = [partition for partition in manifest.partitions if partition.split == split]
        if sum(partition.kept for partition in partitions) == 0:
            raise UserError(
                f"logs.splits.{split}: no row is left of its {sum(p.rows_read for p in partitions):,} rows in "
                f"{len(partitions)} partitions ({sum(p.quarantined for p in partitions):,} quarantined, "
                f"{sum(p.filtered for p in partitions):,} filtered out, "
                f"{sum(len(p.skipped_files) for p in partitions)} files skipped): change the range or mend the log."
            )


def _check_kinds(plan: Plan, index: dict[str, dict[str, Any]]) -> None:
    """New partitions must have the kind of ids that the encoders were fitted on."""
    for name, encoder in index.items():
        if "values" in encoder and (kind := table_kind(plan.sections, plan.sources, name)) != encoder["values"]:
            raise UserError(
                f"feature {name!r}: the new partitions have ids of kind {kind}, but the encoder in {plan.table} was "
                f"fitted on {encoder['values']}. Convert the new partitions, or make the table again with --overwrite."
            )


def _with_earlier_columns(plan: Plan) -> Plan:
    """The plan with the columns that the table has; keys of new partitions must fit into them."""
    filesystem, path = storage.resolve(storage.join(plan.table, COLUMNS))
    earlier = pq.read_schema(path, filesystem=filesystem)
    for old, new in zip(earlier, plan.schema, strict=True):
        try:
            fits = pa.unify_schemas([pa.schema([old]), pa.schema([new])], promote_options="permissive").field(0).type
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            fits = None
        if fits != old.type:
            raise UserError(
                f"{old.name!r} is {new.type} in the new partitions, but {old.type} in the feature table {plan.table}. "
                "Convert the new partitions, or make the table again with --overwrite."
            )
    return replace(plan, schema=earlier)


def _make_manifest(sections: Sections, table: str, found: Found) -> Manifest:
    filesystem, path = storage.resolve(storage.join(table, COLUMNS))
    index = storage.read_json(storage.join(table, ENCODERS, INDEX)) or {}
    splits = list(sections.logs.splits)

    def place(partition: Partition) -> tuple[int, int | str]:
        return splits.index(partition.split), sections.logs.order(partition.value)

    return Manifest(
        fingerprint=fingerprint(table_settings(sections)),
        lanes=sections.table.lanes,
        row_group_rows=sections.table.row_group_rows,
        columns=columns_in_words(pq.read_schema(path, filesystem=filesystem)),
        table_rows={name: encoder["rows"] for name, encoder in index.items() if encoder["rows"] is not None},
        partitions=sorted(read_committed(table), key=place),
        ignored_partitions=found.ignored,
    )
