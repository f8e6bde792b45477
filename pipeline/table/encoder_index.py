"""The index of a table's encoders: writing it commits them."""

from dataclasses import asdict, dataclass
from typing import Any

from pipeline import storage
from pipeline.documents import KNOWN_KEYS_ONLY, Json, read_document
from pipeline.features.encoder_files import ENCODERS
from pipeline.table.manifest import MAKE_AGAIN

INDEX = "encoders.json"


@dataclass(frozen=True)
class EncoderIndex:
    """The file encoders.json. Writing it commits the encoders: a file that it does not lead to does not count."""

    __pydantic_config__ = KNOWN_KEYS_ONLY

    encoders: dict[str, dict[str, Any]]  # kind, what its ids are made of, rows of its embedding table
    generation: int = 1  # of the vocabularies: 1 as they were fitted, one more with each extension
    counted: list[str] | None = None  # train partitions that the vocabularies have counted; None: not known
    lineage: str = ""  # of the files that they were fitted on: ids of another lineage mean something else


def read_index(table: str) -> EncoderIndex | None:
    return read_document(storage.join(table, ENCODERS, INDEX), EncoderIndex, MAKE_AGAIN, way_over=_from_file)


def write_index(table: str, index: EncoderIndex) -> None:
    storage.write_json(storage.join(table, ENCODERS, INDEX), asdict(index))


def _from_file(data: Json) -> Json:
    """Before vocabularies could be extended, the file was the encoders alone, by name."""
    is_early = all(isinstance(value, dict) and "kind" in value for value in data.values())
    return {"encoders": data} if is_early else data
