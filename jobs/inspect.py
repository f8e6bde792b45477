"""`manygate inspect`: describes what is in a folder."""

from pipeline import storage
from pipeline.checkpoint.choice import CheckpointChoice
from pipeline.checkpoint.format import MARKER, complete_checkpoints, find_checkpoint
from pipeline.errors import UserError
from pipeline.report.folders import describe_checkpoint, describe_table
from pipeline.run_folder import CHECKPOINTS_FOLDER, TABLE_FOLDER
from pipeline.table_folder import MANIFEST


def run(path: str) -> None:
    """Describes a feature table, a checkpoint, or a run's folder with both.

    Raises:
        UserError: the path is none of these.
    """
    if storage.exists(storage.join(path, MANIFEST)):
        print(describe_table(path))
        return
    if storage.exists(storage.join(path, MARKER)):
        named = find_checkpoint(path, CheckpointChoice(None, path))
        assert named is not None
        print(describe_checkpoint(named))
        return
    table, saved = storage.join(path, TABLE_FOLDER), complete_checkpoints(storage.join(path, CHECKPOINTS_FOLDER))
    if not saved and not storage.exists(storage.join(table, MANIFEST)):
        raise UserError(
            f"{path} is not a finished feature table, a complete checkpoint, or a run folder with either of them."
        )
    if storage.exists(storage.join(table, MANIFEST)):
        print(describe_table(table))
    for checkpoint in saved:
        print()
        print(describe_checkpoint(checkpoint))
