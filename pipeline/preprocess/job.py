"""The preprocessing job, from the experiment to the manifest."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.config.experiment import Experiment
from pipeline.config.logs import LogsConfig
from pipeline.config.partition_values import Key
from pipeline.config.table_experiment import TableExperiment
from pipeline.errors import UserError
from pipeline.features.arrow_types import is_bytes, is_text, plain_type
from pipeline.features.encoder_files import generation_folder
from pipeline.preprocess.commit import delete_superseded_partitions, transform_partitions, warn_of_late_files
from pipeline.preprocess.discover import LogPartition, PartitionFiles, compact, read_files
from pipeline.preprocess.encode import delete_superseded_encoders, load_encoders
from pipeline.preprocess.entries import Listed, classify_entries, count_entries, list_log
from pipeline.preprocess.fit import extend_encoders, fit_encoders
from pipeline.preprocess.id_kinds import with_fitted_kinds
from pipeline.preprocess.partitions import DiscoveredPartitions, find_partitions
from pipeline.preprocess.preprocess_plan import PreprocessPlan, columns_in_words, make_preprocess_plan
from pipeline.preprocess.sources import uses
from pipeline.preprocess.transform import Transform
from pipeline.preprocess.units import cut_units
from pipeline.table.encoder_index import INDEX, EncoderIndex, read_index
from pipeline.table.manifest import KEY, Manifest, Partition, read_manifest, rows_left_out, write_manifest
from pipeline.table.partition_record import PartitionRecord, read_records, write_record
from pipeline.table.settings import TableSettings, check_may_continue, read_settings
from pipeline.table.target_quantiles import load_target_quantiles
from pipeline.table_folder import COLUMNS, ENCODERS, MANIFEST, RECORDS, SETTINGS, WORK

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExistingTable:
    """A feature table in the state in which the job finds it."""

    sections: TableExperiment
    path: str
    earlier: TableSettings | None  # None if there is no table yet, or it will be overwritten
    settings: TableSettings  # the settings it will have; the earlier ones if they have the same meaning
    records: list[PartitionRecord]  # all complete partitions, including those that no longer belong to the table

    @property
    def made_with(self) -> str:
        return self.settings.made_with

    @property
    def committed(self) -> list[PartitionRecord]:
        made_with = self.made_with
        return [record for record in self.records if record.belongs(self.sections.logs, made_with)]


def _find_table(
    sections: TableExperiment, path: str, earlier: TableSettings | None, overwrite: bool = False
) -> ExistingTable:
    """The existing table. If it will be overwritten, only settings of the same meaning are taken from it.

    A newer version may write the same settings as another document, with other fingerprints. With the earlier document
    the table is the one that its checkpoints were trained on.
    """
    settings = TableSettings.of(sections)
    if earlier is not None and earlier.meaning == settings.meaning:
        settings = earlier
    if earlier is None or overwrite:
        return ExistingTable(sections, path, None, settings, [])
    return ExistingTable(sections, path, earlier, settings, read_records(path, earlier.made_with))


def _settings_before(path: str, overwrite: bool) -> TableSettings | None:
    """The settings of the table; None if there is no table, or if it will be overwritten and they cannot be read."""
    try:
        return read_settings(path)
    except UserError:
        if overwrite:
            return None
        raise


def preprocess(
    experiment: Experiment, table: str, overwrite: bool = False, connect: Callable[[], None] = lambda: None
) -> Manifest:
    """Makes the feature table of an experiment, or continues it and keeps its complete partitions.

    Partitions that have moved to another split are rebuilt from the logs. If scenarios or tasks were added, all
    partitions are rebuilt.

    Args:
        table: folder or URI of the feature table.
        overwrite: delete an existing table first, after the logs have been checked.
        connect: connects to Ray if necessary; called only after the logs have been checked, and only if there is work.

    Raises:
        UserError: the logs do not fit the experiment (in this case nothing is written), the table was made with
            other settings, a file cannot be read, or too many rows cannot be used.
    """
    path = storage.absolute(table)
    sections = experiment.table_experiment
    existing = _find_table(sections, path, _settings_before(path, overwrite), overwrite)
    if existing.earlier is not None and existing.earlier is not existing.settings:
        grown = check_may_continue(path, existing.earlier, existing.settings)
        logger.info("the experiment has gained %s: all partitions are rebuilt", grown)
    if existing.earlier is not None:
        _finished(path)
    if existing.records:
        _committed_index(existing)
    committed = [record.partition for record in existing.committed]
    found = find_partitions(sections.logs, [LogPartition(p.split, p.value) for p in committed])
    known = {partition.value for partition in committed}
    read_before = {file for record in existing.committed for file in record.log_files or ()}
    new = [partition for partition in found.partitions if partition.value not in known]
    files = read_files(sections.logs, new, found.current, read_before)
    _check_moves(existing, files)
    _check_damaged_records(existing, found)
    _report_left_out(existing, found, files)
    listed = list_log(sections.logs, found, [experiment.folder, path])
    _warn_of_late_files(existing, found, listed)
    if files:
        to_read = [file for partition in files for file in partition.files]
        earlier = set() if existing.earlier is None else {use.column for use in uses(existing.earlier.meaning)}
        plan = make_preprocess_plan(sections, path, to_read, experiment.cluster.memory_per_task, earlier)
        connect()
        _run(plan, existing, files)
    made = _find_table(sections, path, existing.settings)
    manifest = _make_manifest(made, found, listed)
    before = _finished(path)
    if before == manifest and before.log_entries in ({}, manifest.log_entries):
        logger.info("the feature table is complete: nothing to do")
    else:
        check_no_split_is_empty(sections.logs, manifest)
        write_manifest(path, manifest)
    _delete_superseded(made)
    return manifest


def _finished(table: str) -> Manifest | None:
    return None if storage.read_json(storage.join(table, MANIFEST)) is None else read_manifest(table)


def _check_moves(table: ExistingTable, files: list[PartitionFiles]) -> None:
    """Raises UserError if a partition must move to another split, but is no longer in the logs."""
    logs, made_with = table.sections.logs, table.made_with
    done, to_make = {r.partition.value for r in table.committed}, {f.partition.value for f in files}
    for partition in (record.partition for record in table.records if record.made_with == made_with):
        value, split, wanted = partition.value, partition.split, logs.split_of(partition.value)
        if wanted is None or value in done:
            continue
        if value not in to_make:
            raise UserError(
                f"logs.splits moves {logs.folder_of(value)} from `{split}` to `{wanted}`, but "
                f"{storage.absolute(logs.path)} has no files to rebuild it from. Restore the files, or change the "
                "range."
            )
        logger.info("%s moves from `%s` to `%s`: it is rebuilt", logs.folder_of(value), split, wanted)


def _check_damaged_records(table: ExistingTable, found: DiscoveredPartitions) -> None:
    """Raises UserError if a record cannot be read and its partition cannot be rebuilt: its files would be deleted."""
    if table.earlier is None:
        return
    in_log = [*found.ignored, *(partition.value for partition in found.partitions)]
    splits = {*table.sections.logs.splits, *(record.partition.split for record in table.records)}
    rebuilt = {f"{RECORDS}/{split}-{value}.json" for split in splits for value in in_log}
    files = {f"{RECORDS}/{name}" for name in storage.list_folder(storage.join(table.path, RECORDS))}
    for file in sorted(files - {record.file for record in table.records}):
        if file not in rebuilt:
            raise UserError(
                f"{storage.join(table.path, file)} is damaged, and {storage.absolute(table.sections.logs.path)} has no "
                "files to rebuild its partition from. Restore one of them, or delete the damaged file to remove the "
                "partition from the table."
            )


def _report_left_out(table: ExistingTable, found: DiscoveredPartitions, files: list[PartitionFiles]) -> None:
    """Logs which complete partitions the manifest will not name: those in no split, and those whose logs are gone."""
    logs, made_with = table.sections.logs, table.made_with
    named = {r.partition.value for r in table.committed} | {f.partition.value for f in files}
    others = [record for record in table.records if record.partition.value not in named]
    aside = dict.fromkeys(record.partition.value for record in others if record.made_with == made_with)
    if aside:
        logger.info("in the feature table, but now in no split, so left out of its manifest: %s", ", ".join(aside))
    lost = {r.partition.value: r.partition.kept for r in others if r.made_with != made_with}
    rows = [f"{logs.folder_of(value)} ({kept:,} rows)" for value, kept in lost.items() if value not in found.ignored]
    if rows:
        lost_rows = ", ".join(rows)
        logger.warning("removed from the feature table, because the logs to rebuild them are gone: %s", lost_rows)


def _warn_of_late_files(table: ExistingTable, found: DiscoveredPartitions, listed: Listed) -> None:
    logs, records = table.sections.logs, table.committed
    folders = [logs.folder_of(record.partition.value) for record in records]
    in_log = {folder: listed[folder] for folder in folders if folder in listed}
    warn_of_late_files(logs, table.path, records, classify_entries(logs, found, records, in_log))


def _run(plan: PreprocessPlan, table: ExistingTable, files: list[PartitionFiles]) -> None:
    """Fits or extends the encoders if necessary, and transforms the partitions."""
    index = None if table.earlier is None else read_index(plan.table)
    train = [partition for partition in files if partition.partition.split == "train"]
    if index is not None:
        plan, index = with_fitted_kinds(plan, index, table.records)
    elif not any(cut_units(partition) for partition in train):
        raise UserError("logs.splits.train: its partitions have no rows, so nothing can be fitted: change the range.")
    if table.earlier is None:
        _begin(plan, table.settings)
    elif any(record.made_with == table.made_with for record in table.records):
        plan = _with_earlier_columns(plan, table.records)
        _delete_manifest_of(plan.table, files)
    else:
        _begin_again(plan, table)
    if index is None:
        fit_encoders(plan, table.settings, train)
    else:
        _extend(plan, table, index, train)
    generation = _committed_index(table).generation
    encoders = load_encoders(plan.sections, plan.table, generation)
    quantiles = load_target_quantiles(plan.sections, plan.table)
    transform_partitions(Transform(plan, encoders, quantiles), files, table.made_with)


def _committed_index(table: ExistingTable) -> EncoderIndex:
    """The index of the table's encoders.

    Raises:
        UserError: it is damaged, or describes other encoders than the table has.
    """
    index = read_index(table.path)
    if index is None:
        raise UserError(
            f"The feature table in {table.path} has partitions, but no readable {ENCODERS}/{INDEX} that describes "
            "their encoders: rebuild it with --overwrite."
        )
    are_all = index.encoders.keys() == {feature.encoder_name for feature in table.sections.features}
    if not are_all or not storage.is_folder(generation_folder(table.path, index.generation)):
        raise UserError(
            f"{storage.join(table.path, ENCODERS, INDEX)} describes other encoders than the feature table has: it was "
            "changed. Restore it, or rebuild the table with --overwrite."
        )
    return index


def _extend(plan: PreprocessPlan, table: ExistingTable, index: EncoderIndex, train: list[PartitionFiles]) -> None:
    """Extends the vocabularies with train partitions not yet counted, if `table.encoders` is `extend`."""
    counted = index.counted
    if counted is None:
        counted = [record.partition.value for record in table.records if record.partition.split == "train"]
    new = [partition for partition in train if partition.partition.value not in counted]
    if new and plan.sections.table.encoders == "extend":
        extend_encoders(plan, index, counted, new)
    else:
        logger.info("using the existing encoders")


def _delete_manifest_of(table: str, files: list[PartitionFiles]) -> None:
    """Deletes the manifest if it names a partition that is rebuilt in place: the table is unfinished meanwhile."""
    manifest = _finished(table)
    again = {(f.partition.split, f.partition.value) for f in files}
    if manifest is not None and any((p.split, p.value) in again for p in manifest.partitions):
        storage.delete_file(table, MANIFEST)


def _begin_again(plan: PreprocessPlan, table: ExistingTable) -> None:
    """Writes the new settings and columns of a table that has no partitions with these settings yet.

    A killed job may leave an incomplete columns file: it is not used before the first partition is committed.
    """
    storage.delete_file(plan.table, MANIFEST)
    for record in table.records:  # early records lack `made_with`, which cannot be derived later
        write_record(plan.table, record)
    storage.write_json(storage.join(plan.table, SETTINGS), table.settings.document)
    _write_columns(plan)


def _begin(plan: PreprocessPlan, settings: TableSettings) -> None:
    """Clears the folder and writes the columns and then the settings, which later runs are checked against."""
    for name in (MANIFEST, SETTINGS):  # first, so that a half-deleted table is not taken for a table
        storage.delete_file(plan.table, name)
    storage.empty_folder(plan.table)
    _write_columns(plan)
    storage.write_json(storage.join(plan.table, SETTINGS), settings.document)


def _write_columns(plan: PreprocessPlan) -> None:
    with storage.open_output(storage.join(plan.table, COLUMNS)) as stream:
        pq.write_table(plan.schema.empty_table(), stream)


def _delete_superseded(table: ExistingTable) -> None:
    """Deletes files that the manifest does not refer to. If a job is killed before this, the next job deletes them."""
    storage.delete_folder(table.path, WORK)
    delete_superseded_encoders(table.path, _committed_index(table))
    delete_superseded_partitions(table.sections.logs, table.path, table.made_with)


def check_no_split_is_empty(logs: LogsConfig, manifest: Manifest) -> None:
    """Raises UserError if a split has no rows left."""
    for split in logs.splits:
        partitions = [partition for partition in manifest.partitions if partition.split == split]
        if sum(partition.kept for partition in partitions) == 0:
            records = [f"{RECORDS}/{split}-{partition.value}.json" for partition in partitions]
            sampled = any(partition.sampled_out for partition in partitions)
            keep = ", or raise logs.negatives.keep and rebuild the table with --overwrite" if sampled else ""
            redo = f", delete {compact(records)} in the feature table" if records else ""
            raise UserError(
                f"logs.splits.{split}: no row is left of its {sum(p.rows_read for p in partitions):,} rows in "
                f"{len(partitions)} partitions ({rows_left_out(partitions)}, "
                f"{sum(len(p.skipped_files) for p in partitions)} files skipped): change the range, or fix the log"
                f"{redo} and run again{keep}."
            )


def _with_earlier_columns(plan: PreprocessPlan, records: list[PartitionRecord]) -> PreprocessPlan:
    """The plan with the existing columns of the table; the keys of new partitions must fit into them."""
    if all(record.partition.kept == 0 for record in records):  # no file has them, and a key may have had only nulls
        _write_columns(plan)
        return plan
    filesystem, path = storage.resolve(storage.join(plan.table, COLUMNS))
    earlier = pq.read_schema(path, filesystem=filesystem)
    for old, new in zip(earlier, plan.schema, strict=True):
        key = old.name.removeprefix(KEY)
        # In paths, numbers are texts if other values of the column are texts.
        in_paths = all(key in values for values in plan.sources.in_paths.values())
        if not _fits(old, new) and not (in_paths and is_text(old.type) and pa.types.is_int64(new.type)):
            raise UserError(
                f"{old.name!r} is {new.type} in the new partitions, but {old.type} in the feature table {plan.table}. "
                "Convert the new partitions, or rebuild the table with --overwrite."
            )
    return replace(plan, schema=earlier)


def _fits(old: pa.Field, new: pa.Field) -> bool:
    """Whether the type of a table's column can hold values of a new type. They may be stored in another way."""
    if plain_type(old.type) == plain_type(new.type) or (is_text(old.type) and is_bytes(new.type)):
        return True
    try:
        both = pa.unify_schemas([pa.schema([old]), pa.schema([new])], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return False
    return bool(both.field(0).type == old.type)


def _make_manifest(table: ExistingTable, found: DiscoveredPartitions, listed: Listed) -> Manifest:
    filesystem, path = storage.resolve(storage.join(table.path, COLUMNS))
    index, layout, logs = _committed_index(table), table.sections.table, table.sections.logs
    splits, partitions = list(logs.splits), [record.partition for record in table.committed]
    order = logs.order(partition.value for partition in partitions)

    def place(partition: Partition) -> tuple[int, Key]:
        return splits.index(partition.split), order.key(logs.parts_of(partition.value))

    return Manifest(
        fingerprint=table.settings.fingerprint,
        lanes=layout.lanes,
        row_group_rows=layout.row_group_rows,
        columns=columns_in_words(pq.read_schema(path, filesystem=filesystem)),
        table_rows={name: encoder.rows for name, encoder in index.encoders.items() if encoder.rows is not None},
        partitions=sorted(partitions, key=place),
        ignored_partitions=found.ignored,
        lineage=index.lineage,
        log_entries=count_entries(classify_entries(logs, found, table.committed, listed)),
    )
