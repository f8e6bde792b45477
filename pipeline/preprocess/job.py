"""The preprocessing job, from the experiment to the manifest."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.config.experiment import Experiment
from pipeline.config.logs import LogsConfig
from pipeline.config.table_experiment import TableExperiment
from pipeline.errors import UserError
from pipeline.features.encoder_files import ENCODERS
from pipeline.preprocess.commit import delete_superseded_partitions, transform_partitions, warn_of_late_files
from pipeline.preprocess.discover import (
    DiscoveredPartitions,
    LogPartition,
    PartitionFiles,
    find_partitions,
    read_files,
)
from pipeline.preprocess.encode import delete_superseded_encoders, load_encoders
from pipeline.preprocess.fit import WORK, extend_encoders, fit_encoders
from pipeline.preprocess.preprocess_plan import PreprocessPlan, columns_in_words, make_preprocess_plan
from pipeline.preprocess.transform import Transform
from pipeline.preprocess.units import cut_units
from pipeline.table.encoder_index import INDEX, EncoderIndex, read_index
from pipeline.table.manifest import MANIFEST, Manifest, Partition, read_manifest, write_manifest
from pipeline.table.partition_record import PartitionRecord, read_records, write_record
from pipeline.table.settings import COLUMNS, SETTINGS, TableSettings, check_may_continue, read_settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExistingTable:
    """A feature table as the job finds it."""

    sections: TableExperiment
    path: str
    earlier: TableSettings | None  # None where none was begun, or it is to be overwritten
    settings: TableSettings  # that it is to have; the earlier ones where they mean the same
    records: list[PartitionRecord]  # all complete partitions, those that do not belong to it any more included

    @property
    def made_with(self) -> str:
        return self.settings.made_with

    @property
    def committed(self) -> list[PartitionRecord]:
        made_with = self.made_with
        return [record for record in self.records if record.belongs(self.sections.logs, made_with)]


def _find_table(sections: TableExperiment, path: str, earlier: TableSettings | None) -> ExistingTable:
    settings = TableSettings.of(sections)
    if earlier is None:
        return ExistingTable(sections, path, None, settings, [])
    is_same = earlier.meaning == settings.meaning
    return ExistingTable(
        sections, path, earlier, earlier if is_same else settings, read_records(path, earlier.made_with)
    )


def preprocess(
    experiment: Experiment, table: str, overwrite: bool = False, connect: Callable[[], None] = lambda: None
) -> Manifest:
    """Makes the feature table of an experiment, or continues one: partitions that it has are kept.

    Partitions that are now in another split are made again from the logs, and all of them where scenarios or tasks
    were added.

    Args:
        table: folder or URI of the feature table.
        overwrite: delete a table that is there first, once the logs are known to be fit.
        connect: connects to Ray, where that is not done; called only when the logs are fit and there is work.

    Raises:
        UserError: the logs do not fit the experiment (nothing is written then), the table was made with other
            settings, a file cannot be read, or too many rows cannot be used.
    """
    path = storage.absolute(table)
    sections = experiment.table_experiment
    there = _find_table(sections, path, None if overwrite else read_settings(path))
    if there.earlier is not None and there.earlier is not there.settings:
        grown = check_may_continue(path, there.earlier, there.settings)
        logger.info("the experiment has gained %s: all partitions are made again", grown)
    committed = [record.partition for record in there.committed]
    found = find_partitions(sections.logs, [LogPartition(p.split, p.value) for p in committed])
    known = {partition.value for partition in committed}
    files = read_files(sections.logs, [partition for partition in found.partitions if partition.value not in known])
    _check_moves(there, files)
    _tell_of_left_out(there, found, files)
    in_log = {partition.value for partition in found.partitions}
    warn_of_late_files(sections.logs, path, [r for r in there.committed if r.partition.value in in_log])
    if files:
        plan = make_preprocess_plan(sections, path, [file for partition in files for file in partition.files])
        connect()
        _run(plan, there, files)
    made = _find_table(sections, path, there.settings)
    manifest = _make_manifest(made, found)
    if _finished(path) == manifest:
        logger.info("the feature table has all partitions of the logs: nothing to do")
    else:
        check_no_split_is_empty(sections.logs, manifest)
        write_manifest(path, manifest)
    _delete_superseded(made)
    return manifest


def _finished(table: str) -> Manifest | None:
    return None if storage.read_json(storage.join(table, MANIFEST)) is None else read_manifest(table)


def _check_moves(table: ExistingTable, files: list[PartitionFiles]) -> None:
    """Raises UserError where a partition is to move to another split, and the logs do not have it."""
    logs, column, made_with = table.sections.logs, table.sections.logs.partition, table.made_with
    done, to_make = {r.partition.value for r in table.committed}, {f.partition.value for f in files}
    for partition in (record.partition for record in table.records if record.made_with == made_with):
        value, split, wanted = partition.value, partition.split, logs.split_of(partition.value)
        if wanted is None or value in done:
            continue
        if value not in to_make:
            raise UserError(
                f"logs.splits moves {column}={value} from `{split}` to `{wanted}`, but {storage.absolute(logs.path)} "
                "has no files of it to make it again from. Bring them back, or change the range."
            )
        logger.info("%s=%s moves from `%s` to `%s`: it is made again", column, value, split, wanted)


def _tell_of_left_out(table: ExistingTable, found: DiscoveredPartitions, files: list[PartitionFiles]) -> None:
    """Says which complete partitions the manifest will not have: those in no split, and those whose logs are gone."""
    column, made_with = table.sections.logs.partition, table.made_with
    named = {r.partition.value for r in table.committed} | {f.partition.value for f in files}
    others = [record for record in table.records if record.partition.value not in named]
    aside = dict.fromkeys(record.partition.value for record in others if record.made_with == made_with)
    if aside:
        logger.info("in the feature table, but in no split now, so left out of its manifest: %s", ", ".join(aside))
    lost = {r.partition.value: r.partition.kept for r in others if r.made_with != made_with}
    rows = [f"{column}={value} ({kept:,} rows)" for value, kept in lost.items() if value not in found.ignored]
    if rows:
        told = ", ".join(rows)
        logger.warning("gone from the feature table, as the logs no longer have them to be made again: %s", told)


def _run(plan: PreprocessPlan, table: ExistingTable, files: list[PartitionFiles]) -> None:
    """Fits or extends the encoders, where that is due, and transforms the partitions."""
    index = None if table.earlier is None else read_index(plan.table)
    train = [partition for partition in files if partition.partition.split == "train"]
    if index is not None:
        _check_kinds(plan, index)
    elif table.records:
        raise UserError(
            f"The feature table in {table.path} has partitions, but no readable {ENCODERS}/{INDEX} that they were "
            "encoded by: make it again with --overwrite."
        )
    elif not any(cut_units(partition) for partition in train):
        raise UserError("logs.splits.train: its partitions have no rows, so nothing can be fitted.")
    if table.earlier is None:
        _begin(plan, table.settings)
    elif any(record.made_with == table.made_with for record in table.records):
        plan = _with_earlier_columns(plan)
        _delete_manifest_of(plan.table, files)
    else:
        _begin_again(plan, table)
    if index is None:
        fit_encoders(plan, train)
    else:
        _extend(plan, table, index, train)
    generation = _committed_index(plan.table).generation
    transform_partitions(Transform(plan, load_encoders(plan.sections, plan.table, generation)), files, table.made_with)


def _committed_index(table: str) -> EncoderIndex:
    index = read_index(table)
    assert index is not None
    return index


def _extend(plan: PreprocessPlan, table: ExistingTable, index: EncoderIndex, train: list[PartitionFiles]) -> None:
    """Extends the vocabularies by train partitions that they have not counted, where the experiment wants that."""
    counted = index.counted
    if counted is None:
        counted = [record.partition.value for record in table.records if record.partition.split == "train"]
    new = [partition for partition in train if partition.partition.value not in counted]
    if new and plan.sections.table.encoders == "extend":
        extend_encoders(plan, index, counted, new)
    else:
        logger.info("the encoders that exist are used")


def _delete_manifest_of(table: str, files: list[PartitionFiles]) -> None:
    """A partition that is made again where it lies leaves the table unfinished meanwhile."""
    manifest = _finished(table)
    again = {(f.partition.split, f.partition.value) for f in files}
    if manifest is not None and any((p.split, p.value) in again for p in manifest.partitions):
        storage.delete_file(storage.join(table, MANIFEST))


def _begin_again(plan: PreprocessPlan, table: ExistingTable) -> None:
    """Gives a table without partitions of these settings the settings and columns that it is to have.

    The columns may be torn by a kill: they count when the first partition is committed.
    """
    storage.delete_file(storage.join(plan.table, MANIFEST))
    for record in table.records:  # early ones get to say what they were made with, which is not known afterwards
        write_record(plan.table, record)
    storage.write_json(storage.join(plan.table, SETTINGS), table.settings.document)
    _write_columns(plan)


def _begin(plan: PreprocessPlan, settings: TableSettings) -> None:
    """Clears the folder, and writes what later runs are held against: the settings last."""
    for name in (MANIFEST, SETTINGS):  # first, so that a half-deleted table is none
        storage.delete_file(storage.join(plan.table, name))
    storage.delete_folder(plan.table)
    storage.create_folder(plan.table)
    _write_columns(plan)
    storage.write_json(storage.join(plan.table, SETTINGS), settings.document)


def _write_columns(plan: PreprocessPlan) -> None:
    filesystem, path = storage.resolve(storage.join(plan.table, COLUMNS))
    pq.write_table(plan.schema.empty_table(), path, filesystem=filesystem)


def _delete_superseded(table: ExistingTable) -> None:
    """Deletes what the manifest does not lead to any more. A job that is killed before leaves it to the next one."""
    storage.delete_folder(storage.join(table.path, WORK))
    delete_superseded_encoders(table.path, _committed_index(table.path))
    delete_superseded_partitions(table.sections.logs, table.path, table.made_with)


def check_no_split_is_empty(logs: LogsConfig, manifest: Manifest) -> None:
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


def _check_kinds(plan: PreprocessPlan, index: EncoderIndex) -> None:
    """New partitions must have the kind of ids that the encoders were fitted on."""
    features = {feature.name: feature for feature in plan.sections.features}
    for name, encoder in index.encoders.items():
        if "values" in encoder and (kind := features[name].encoder_values(plan.sources.kinds)) != encoder["values"]:
            raise UserError(
                f"feature {name!r}: the new partitions have ids of kind {kind}, but the encoder in {plan.table} was "
                f"fitted on {encoder['values']}. Convert the new partitions, or make the table again with --overwrite."
            )


def _with_earlier_columns(plan: PreprocessPlan) -> PreprocessPlan:
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


def _make_manifest(table: ExistingTable, found: DiscoveredPartitions) -> Manifest:
    filesystem, path = storage.resolve(storage.join(table.path, COLUMNS))
    index, layout, logs = _committed_index(table.path), table.sections.table, table.sections.logs
    splits = list(logs.splits)

    def place(partition: Partition) -> tuple[int, int | str]:
        return splits.index(partition.split), logs.order(partition.value)

    return Manifest(
        fingerprint=table.settings.fingerprint,
        lanes=layout.lanes,
        row_group_rows=layout.row_group_rows,
        columns=columns_in_words(pq.read_schema(path, filesystem=filesystem)),
        table_rows={name: encoder["rows"] for name, encoder in index.encoders.items() if encoder["rows"] is not None},
        partitions=sorted((record.partition for record in table.committed), key=place),
        ignored_partitions=found.ignored,
        lineage=index.lineage,
    )
