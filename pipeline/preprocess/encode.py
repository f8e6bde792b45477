"""The encoders of a feature table: loading all of them, their table sizes, and deleting superseded ones."""

from pipeline import storage
from pipeline.config.table_experiment import TableExperiment
from pipeline.features.encoder_files import GENERATION, RARE, generation_folder
from pipeline.features.encoders import Encoder
from pipeline.table.encoder_index import EncoderIndex
from pipeline.table_folder import ENCODERS


def delete_superseded_encoders(table: str, index: EncoderIndex) -> None:
    """Deletes the vocabularies of all generations except the committed one."""
    folder = storage.join(table, ENCODERS)
    current = generation_folder(table, index.generation)
    for name in storage.list_folder(folder):
        if name.startswith(GENERATION) and storage.join(folder, name) != current:
            storage.delete_folder(folder, name)
    if index.generation > 1:
        storage.delete_folder(folder, RARE)
        for name, encoder in index.encoders.items():
            if encoder.kind == "vocabulary":
                storage.delete_file(folder, f"{name}.parquet")


def load_encoders(sections: TableExperiment, table: str, generation: int) -> dict[str, Encoder]:
    """All encoders, by the name of the feature that owns each."""
    owners = [feature for feature in sections.features if feature.encoder_name == feature.name]
    return {feature.name: feature.load_encoder(table, generation) for feature in owners}


def table_sizes(encoders: dict[str, Encoder]) -> dict[str, int]:
    """Rows of each embedding table, including the missing id and the unknown id."""
    return {name: encoder.rows for name, encoder in encoders.items() if encoder.rows is not None}
