"""Records: a partition of a feature table is complete when its record is written."""

from dataclasses import asdict, dataclass, fields
from functools import partial

from pipeline import storage
from pipeline.config.logs import LogsConfig
from pipeline.documents import KNOWN_KEYS_ONLY, Json, RelativePath, read_document
from pipeline.table.manifest import REBUILD_HINT, Partition
from pipeline.table_folder import RECORDS


@dataclass(frozen=True)
class PartitionRecord:
    """A complete partition. The settings and the splits decide whether it belongs to the table."""

    __pydantic_config__ = KNOWN_KEYS_ONLY

    partition: Partition
    made_with: str  # `TableSettings.made_with` of the settings
    log_files: dict[RelativePath, int] | None = None  # bytes of each file in the log at that time; None: unknown

    @property
    def file(self) -> str:
        """Path relative to the feature table."""
        return f"{RECORDS}/{self.partition.split}-{self.partition.value}.json"

    def belongs(self, logs: LogsConfig, made_with: str) -> bool:
        """Whether the partition was made with the table's current settings and is in its current split."""
        return self.made_with == made_with and logs.split_of(self.partition.value) == self.partition.split


def read_records(table: str, made_with: str) -> list[PartitionRecord]:
    """All complete partitions.

    Args:
        made_with: of the table; used for the earliest records, which lack it.
    """
    folder = storage.join(table, RECORDS)
    upgrade = partial(_from_file, made_with=made_with)
    uris = [storage.join(folder, name) for name in storage.list_folder(folder)]
    read = [read_document(uri, PartitionRecord, REBUILD_HINT, upgrade=upgrade) for uri in uris]
    return [record for record in read if record is not None]


def write_record(table: str, record: PartitionRecord) -> None:
    others = asdict(record)
    storage.write_json(storage.join(table, record.file), others.pop("partition") | others)


def _from_file(data: Json, made_with: str) -> Json:
    """In the file, the keys of the partition are on the top level; the earliest records have only these keys."""
    own = {field.name for field in fields(PartitionRecord)} - {"partition"} | {"version"}
    others = {key: value for key, value in data.items() if key in own}
    return {"made_with": made_with, **others, "partition": {key: data[key] for key in data if key not in own}}
