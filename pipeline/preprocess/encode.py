"""The encoders of a feature table: their index, and all of them as its features load them."""

from dataclasses import asdict, dataclass
from typing import Any

from pipeline import storage
from pipeline.config.table_experiment import TableExperiment
from pipeline.features.encoder_files import ENCODERS, GENERATION, RARE, encoder_file, generation_folder
from pipeline.features.encoders import Encoder

INDEX = "encoders.json"


@dataclass(frozen=True)
class EncoderIndex:
    """The file encoders.json. Writing it commits the encoders: a file that it does not lead to does not count."""

    encoders: dict[str, dict[str, Any]]  # kind, what its ids are made of, rows of its embedding table
    generation: int = 1  # of the vocabularies: 1 as they were fitted, one more with each extension
    counted: list[str] | None = None  # train partitions that the vocabularies have counted; None: not known
    lineage: str = ""  # of the files that they were fitted on: ids of another lineage mean something else


def read_index(table: str) -> EncoderIndex | None:
    data = storage.read_json(storage.join(table, ENCODERS, INDEX))
    if data is None:
        return None
    if not isinstance(data.get("generation"), int):  # of a time when vocabularies could not be extended
        return EncoderIndex(data)
    return EncoderIndex(**data)


def write_index(table: str, index: EncoderIndex) -> None:
    storage.write_json(storage.join(table, ENCODERS, INDEX), asdict(index))


def delete_superseded_encoders(table: str, index: EncoderIndex) -> None:
    """Deletes vocabularies of other generations than the committed one."""
    folder = storage.join(table, ENCODERS)
    current = generation_folder(table, index.generation)
    for name in storage.list_folder(folder):
        if name.startswith(GENERATION) and storage.join(folder, name) != current:
            storage.delete_folder(storage.join(folder, name))
    if index.generation > 1:
        storage.delete_folder(storage.join(folder, RARE))
        for name, encoder in index.encoders.items():
            if encoder["kind"] == "vocabulary":
                storage.delete_file(encoder_file(table, name))


def load_encoders(sections: TableExperiment, table: str, generation: int) -> dict[str, Encoder]:
    """All encoders, by the name of the feature that owns them."""
    owners = [feature for feature in sections.features if feature.encoder_name == feature.name]
    return {feature.name: feature.load_encoder(table, generation) for feature in owners}


def table_sizes(encoders: dict[str, Encoder]) -> dict[str, int]:
    """Rows of each embedding table, the missing and the unknown id included."""
    return {name: encoder.rows for name, encoder in encoders.items() if encoder.rows is not None}
