"""Describes a feature table or a checkpoint, for a terminal."""

from collections import Counter

from pipeline.checkpoint.format import Checkpoint
from pipeline.metrics.formatting import format_value
from pipeline.sizes import in_bytes
from pipeline.table.content_report import report_content
from pipeline.table.entry_counts import describe_entries
from pipeline.table.manifest import Manifest, Partition, read_manifest
from pipeline.table.settings import read_settings


def describe_checkpoint(saved: Checkpoint) -> str:
    """Describes a checkpoint: the position of its run, how it was made, and its table and model."""
    state = saved.state()
    progress, experiment, table = state.progress, state.experiment, state.table
    training, model = experiment.training, experiment.model
    stopping = training.early_stopping
    lines = [
        f"Checkpoint {saved.uri}",
        f"  step {progress.step}, next is batch {progress.position.step} of epoch {progress.position.epoch} "
        f"(global batches of {training.global_batch_size} rows)",
        f"  saved by {state.workers} workers with {state.threads} threads each, seed {training.seed}",
        f"  feature table {table.fingerprint[:12]}, {table.lanes} lanes, "
        f"{len(progress.window.partitions)} train partitions",
        f"  model bottom {model.bottom.kind}, trunk {model.trunk.kind}, head {model.head.kind}",
        "  versions " + ", ".join(f"{name} {version}" for name, version in state.versions.items()),
    ]
    if stopping and progress.best is not None:
        lines.append(
            f"  best {stopping.metric} so far {format_value(progress.best)} at step {progress.best_step}, "
            f"{progress.stale_validations} validations ago"
        )
    return "\n".join(lines)


def describe_table(path: str) -> str:
    """Describes a feature table: splits and partitions, rows kept and left out, lanes, tables, columns.

    Raises:
        UserError: there is no finished feature table.
    """
    manifest = read_manifest(path)
    blocks = [
        [f"Feature table {path}", f"  fingerprint {manifest.fingerprint[:12]}, format {manifest.version}"],
        describe_splits(manifest),
        describe_entries(manifest.log_entries),
        describe_quarantine(manifest),
        *_content(path, manifest),
        describe_lanes(manifest),
        [f"Embedding tables: {len(manifest.table_rows)}"]
        + [f"  {name}: {rows:,} rows" for name, rows in manifest.table_rows.items()],
        describe_shares(manifest),
        [f"Columns: {len(manifest.columns)}"] + [f"  {column.name}: {column.type}" for column in manifest.columns],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _content(path: str, manifest: Manifest) -> list[list[str]]:
    """The content of the table and, as `preprocess` warns of it, what a person should look at."""
    is_counted = any(partition.content is not None for partition in manifest.partitions)
    settings = read_settings(path) if is_counted else None
    if settings is None:
        return []
    content = report_content(settings.meaning, manifest)
    return [content.lines, ["To look at", *(f"  {remark}" for remark in content.remarks)] if content.remarks else []]


def splits_of(manifest: Manifest) -> dict[str, list[Partition]]:
    names = dict.fromkeys(partition.split for partition in manifest.partitions)
    return {name: manifest.split(name) for name in names}


def describe_splits(manifest: Manifest) -> list[str]:
    sampled = " + sampled out" if any(p.sampled_out for p in manifest.partitions) else ""
    lines = [f"Splits: rows read = kept + quarantined + filtered out{sampled}"]
    for split, partitions in splits_of(manifest).items():
        lines.append(f"  {split}: {len(partitions)} partitions, {_rows(partitions, bool(sampled))}")
        lines += [f"    {partition.value}: {_rows([partition], bool(sampled))}" for partition in partitions]
    if manifest.ignored_partitions:
        lines.append(f"  in the logs, in no split: {', '.join(manifest.ignored_partitions)}")
    return lines


def _rows(partitions: list[Partition], with_sampled: bool) -> str:
    read = sum(p.rows_read for p in partitions)
    kept = sum(p.kept for p in partitions)
    quarantined = sum(p.quarantined for p in partitions)
    filtered = sum(p.filtered for p in partitions)
    size = sum(file.bytes for p in partitions for lane in p.lanes for file in lane)
    sampled = f" + {sum(p.sampled_out for p in partitions):,}" if with_sampled else ""
    unlabelled = sum(p.unlabelled for p in partitions)
    without = f", {unlabelled:,} filtered out because no task has a label" if unlabelled else ""
    return f"{read:,} = {kept:,} + {quarantined:,} + {filtered:,}{sampled} rows, {in_bytes(size)}{without}"


def describe_quarantine(manifest: Manifest) -> list[str]:
    """The reasons for quarantine, the most frequent first, files that were skipped, and columns that files lack."""
    reasons: Counter[str] = Counter()
    for partition in manifest.partitions:
        reasons.update(partition.reasons)
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    lines = ["Quarantined rows, by reason"] if reasons else []
    lines += [f"  {rows:,}: {reason}" for reason, rows in ordered]
    skipped = [file for partition in manifest.partitions for file in partition.skipped_files]
    lines += [f"Skipped file, not readable: {file}" for file in skipped]
    missing: Counter[str] = Counter()
    for partition in manifest.partitions:
        missing.update(partition.missing_columns)
    return lines + [f"Column {name} is null in {rows:,} rows, whose files lack it" for name, rows in missing.items()]


def describe_lanes(manifest: Manifest) -> list[str]:
    lines = [f"Lanes: {manifest.lanes}, row groups of {manifest.row_group_rows:,} rows"]
    for split, partitions in splits_of(manifest).items():
        rows = [sum(file.rows for p in partitions for file in p.lanes[lane]) for lane in range(manifest.lanes)]
        longest, shortest = max(rows), min(rows)
        uneven = (longest - shortest) / longest if longest else 0.0
        lines.append(f"  {split}: {shortest:,} to {longest:,} rows per lane ({uneven:.2%} uneven)")
    return lines


def describe_shares(manifest: Manifest) -> list[str]:
    """The shares of each feature's ids that are outside its vocabulary or missing, by split."""
    splits = splits_of(manifest)
    lines = ["Ids outside the vocabulary / missing, of all ids"]
    for feature in dict.fromkeys(name for partition in manifest.partitions for name in partition.ids):
        shares = []
        for split, partitions in splits.items():
            ids = sum(p.ids.get(feature, 0) for p in partitions)
            unknown = sum(p.unknown.get(feature, 0) for p in partitions)
            missing = sum(p.missing.get(feature, 0) for p in partitions)
            shares.append(f"{split} {_share(unknown, ids)} / {_share(missing, ids)}")
        lines.append(f"  {feature}: {', '.join(shares)}")
    return lines


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "no ids"
