"""The files that store the state of encoders in a feature table."""

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.table_folder import ENCODERS

RARE = "rare"
GENERATION = "generation-"


def generation_folder(table: str, generation: int) -> str:
    """Folder of the vocabularies of a generation. Other encoders never change and stay in the folder of the first."""
    folder = storage.join(table, ENCODERS)
    return folder if generation == 1 else storage.join(folder, f"{GENERATION}{generation:05d}")


def encoder_file(table: str, name: str, generation: int = 1) -> str:
    """File with the state of an encoder: a vocabulary, quantile edges, or moments."""
    return storage.join(generation_folder(table, generation), f"{name}.parquet")


def write_encoder(table: str, name: str, state: pa.Table, generation: int = 1) -> None:
    with storage.open_output(encoder_file(table, name, generation)) as stream:
        pq.write_table(state, stream, compression="lz4")


def read_encoder(table: str, name: str, generation: int = 1, columns: list[str] | None = None) -> pa.Table:
    filesystem, path = storage.resolve(encoder_file(table, name, generation))
    return pq.read_table(path, columns=columns, filesystem=filesystem, partitioning=None)
