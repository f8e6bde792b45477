"""The index of a table's encoders: writing it commits them."""

from dataclasses import asdict, dataclass

from pipeline import storage
from pipeline.documents import KNOWN_KEYS_ONLY, FileName, Json, read_document
from pipeline.features.values import Kind
from pipeline.table.manifest import REBUILD_HINT
from pipeline.table_folder import ENCODERS

INDEX = "encoders.json"


@dataclass(frozen=True)
class EncoderEntry:
    """One encoder."""

    __pydantic_config__ = KNOWN_KEYS_ONLY

    kind: str
    rows: int | None  # of its embedding table; None for standardised numbers
    values: Kind | None = None  # kind of its ids; None if its values are not ids

    def to_json(self) -> Json:
        values = {} if self.values is None else {"values": self.values}
        return {"kind": self.kind, **values, "rows": self.rows}


@dataclass(frozen=True)
class EncoderIndex:
    """The file encoders.json. Writing it commits the encoders: encoder files that it does not refer to are ignored."""

    __pydantic_config__ = KNOWN_KEYS_ONLY

    encoders: dict[FileName, EncoderEntry]
    generation: int = 1  # of the vocabularies: 1 after the first fit, plus 1 per extension
    counted: list[str] | None = None  # train partitions that are counted in the vocabularies; None: unknown
    lineage: str = ""  # hash of the files that they were fitted on: ids of another lineage have another meaning


def read_index(table: str) -> EncoderIndex | None:
    return read_document(storage.join(table, ENCODERS, INDEX), EncoderIndex, REBUILD_HINT, upgrade=_from_file)


def write_index(table: str, index: EncoderIndex) -> None:
    encoders = {name: encoder.to_json() for name, encoder in index.encoders.items()}
    storage.write_json(storage.join(table, ENCODERS, INDEX), {**asdict(index), "encoders": encoders})


def _from_file(data: Json) -> Json:
    """Before vocabularies could be extended, the file contained only the encoders, by name."""
    is_early = "encoders" not in data and all(isinstance(value, dict) and "kind" in value for value in data.values())
    return {"encoders": data} if is_early else data
