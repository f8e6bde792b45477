"""The names of those files and folders in a run's folder that more than one part of the pipeline uses."""

from pipeline import storage

EXPERIMENT_FILE = "experiment.yaml"
TABLE_FOLDER = "table"
CHECKPOINTS_FOLDER = "checkpoints"
METRICS_FILE = "metrics.jsonl"
COMPARISON_FILE = "compare.json"

_PREFIX, _SUFFIX = "evaluation-", ".json"


def evaluation_file(folder: str, split: str) -> str:
    """Path or URI of the evaluation of a split."""
    return storage.join(folder, f"{_PREFIX}{split}{_SUFFIX}")


def evaluated_splits(folder: str) -> list[str]:
    """The splits that have an evaluation in a run's folder."""
    names = storage.list_folder(folder)
    found = [name for name in names if name.startswith(_PREFIX) and name.endswith(_SUFFIX)]
    return [name.removeprefix(_PREFIX).removesuffix(_SUFFIX) for name in found]
