"""The feature table's manifest: everything that training needs to know before it opens the first file.

table/
  manifest.json                                          written last: its presence is the commit
  encoders/NAME.parquet                                  vocabularies (value, id, count), quantiles, moments
  encoders/quantiles-TASK.parquet                        quantiles of labels, of tasks with `quantiles_within`
  encoders/generation-00002/NAME.parquet                 vocabularies after an extension; they replace the first
  partitions/SPLIT-VALUE.json                            record of a partition: its presence is the commit
  train/date=20220425/lane-000/unit-00000.parquet        ids and values only
  quarantine/date=20220425/unit-00000.parquet            complete rejected rows, with file, row number and reason
"""

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace

from pipeline import storage
from pipeline.documents import KNOWN_KEYS_ONLY, RelativePath, read_document
from pipeline.errors import UserError
from pipeline.table.content import Content
from pipeline.table.entry_counts import EntryClass, EntryCount
from pipeline.table_folder import MANIFEST, NamePart, SplitName

FORMAT_VERSION = 1
REBUILD_HINT = "rebuild the table with `manygate preprocess EXPERIMENT --overwrite`"

# Columns of a lane file other than the features. Feature columns have the feature's name, without such a prefix.
LABEL = "label:"  # + task: float32, on the training scale, see `TaskConfig`; NaN: the row has no label
WEIGHT = "weight:"  # + task: float32, finite, 0 or more; for all tasks or for none
ID_WEIGHTS = "id_weights:"  # + feature: list<float32>, a weight for each id of the feature; finite, 0 or more
REFERENCE = "reference:"  # + task with `reference`: float32, that column; NaN: unusable, in a row without a label
SCENARIO = "scenario:"  # + level: int32 index into Scenario.labels
KEY = "key:"  # + column: values as in the logs


@dataclass(frozen=True)
class LaneFile:
    """One Parquet file of one lane. Row groups have `Manifest.row_group_rows` rows; the last has the remaining rows."""

    __pydantic_config__ = KNOWN_KEYS_ONLY

    path: RelativePath  # to the table
    rows: int
    bytes: int


@dataclass(frozen=True)
class Partition:
    """One committed partition.

    rows_read = kept + quarantined + filtered + sampled_out, where kept is the sum over all lanes.
    """

    __pydantic_config__ = KNOWN_KEYS_ONLY

    split: SplitName
    value: NamePart
    rows_read: int
    quarantined: int
    filtered: int
    lanes: list[list[LaneFile]]  # files of each lane, in order
    reasons: dict[str, int] = field(default_factory=dict)  # why rows were quarantined
    skipped_files: list[RelativePath] = field(default_factory=list)
    unknown: dict[str, int] = field(default_factory=dict)  # feature -> ids outside its vocabulary
    missing: dict[str, int] = field(default_factory=dict)  # feature -> nulls
    ids: dict[str, int] = field(default_factory=dict)  # feature -> all ids, including nulls of single values
    sampled_out: int = 0  # negatives of the train split that `logs.negatives` did not keep
    unlabelled: int = 0  # of the filtered rows: rows of the train split that have no label of any task
    missing_columns: dict[str, int] = field(default_factory=dict)  # column -> rows of files that lack it: null there
    content: Content | None = None  # what the kept rows contain; None: without rows, or made by an earlier version

    @property
    def kept(self) -> int:
        return sum(file.rows for lane in self.lanes for file in lane)


@dataclass(frozen=True)
class TableColumn:
    """One column of the lane files, with the name of its (Arrow) type: int32, float32, list<int32>, ..."""

    __pydantic_config__ = KNOWN_KEYS_ONLY

    name: str
    type: str


@dataclass(frozen=True)
class Manifest:
    """The description of a finished feature table."""

    __pydantic_config__ = KNOWN_KEYS_ONLY

    fingerprint: str  # of the settings that decide the content: logs, features, scenarios, tasks, table
    lanes: int
    row_group_rows: int
    columns: list[TableColumn]
    table_rows: dict[str, int]  # embedding table -> rows, including the missing id and the unknown id
    partitions: list[Partition]
    ignored_partitions: list[str] = field(default_factory=list)  # in the logs, but in no split
    lineage: str = ""  # of the encoders: in all tables of one lineage, equal ids mean equal values
    log_entries: dict[EntryClass, EntryCount] = field(default_factory=dict, compare=False)
    """What was below the log folder, by class. It says nothing of the table; empty if an earlier version made it."""
    version: int = FORMAT_VERSION

    def split(self, name: str) -> list[Partition]:
        """Partitions of a split, in order of their value.

        Raises:
            UserError: the table has no such split.
        """
        found = [p for p in self.partitions if p.split == name]
        if not found:
            known = ", ".join(dict.fromkeys(p.split for p in self.partitions))
            raise UserError(f"The feature table has no split {name!r}; it has: {known}.")
        return found

    def rows(self, split: str) -> int:
        return sum(p.kept for p in self.split(split))

    def digests(self, split: str) -> dict[str, str]:
        """A hash of the files of each partition of a split: a saved position is valid only for the same files."""
        files = {p.value: [[asdict(file) for file in lane] for lane in p.lanes] for p in self.split(split)}
        return {value: hashlib.sha256(json.dumps(lanes).encode()).hexdigest() for value, lanes in files.items()}

    def only(self, split: str, values: Collection[str]) -> "Manifest":
        """A manifest in which the split has only these partitions."""
        return replace(self, partitions=[p for p in self.partitions if p.split != split or p.value in values])


def rows_left_out(partitions: list[Partition]) -> str:
    """How many rows of some partitions were read and not kept, and why, in words."""
    quarantined, filtered = sum(p.quarantined for p in partitions), sum(p.filtered for p in partitions)
    unlabelled, sampled_out = sum(p.unlabelled for p in partitions), sum(p.sampled_out for p in partitions)
    without_label = f" ({unlabelled:,} of them without a label)" if unlabelled else ""
    sampled = f", {sampled_out:,} sampled out" if sampled_out else ""
    return f"{quarantined:,} quarantined, {filtered:,} filtered out{without_label}{sampled}"


def write_manifest(table: str, manifest: Manifest) -> None:
    storage.write_json(storage.join(table, MANIFEST), asdict(manifest))


def read_manifest(table: str) -> Manifest:
    """Reads a table's manifest.

    Raises:
        UserError: there is no finished table, or a newer version made it.
    """
    uri = storage.join(table, MANIFEST)
    manifest = read_document(uri, Manifest, REBUILD_HINT, FORMAT_VERSION)
    if manifest is None:
        raise UserError(f"There is no finished feature table in {table}: run `manygate preprocess EXPERIMENT` first.")
    return manifest
