"""`manygate compare`: trains several models with several seeds each and prints one table with their noise."""

from collections.abc import Sequence

from cluster.connect import connect
from pipeline import storage
from pipeline.comparison.compare_models import compare_models
from pipeline.config.experiment import Experiment
from pipeline.errors import UserError
from pipeline.preprocess.run_table import make_run_table
from pipeline.table.manifest import Manifest
from pipeline.table.settings import read_table
from pipeline.table_folder import MANIFEST
from pipeline.workers.launch import Launcher, is_torchrun
from pipeline.workers.stop import INTERRUPTED_EXIT_CODE
from pipeline.workers.worker_count import Workers


def run(
    experiment: Experiment,
    models: Sequence[tuple[str, str]],
    seeds: str,
    with_reference: bool,
    split: str,
    launcher: str,
    workers: Workers,
) -> int:
    """Compares models, see `compare_models`, and prints the comparison.

    Returns:
        The exit code: 0, or `INTERRUPTED_EXIT_CODE` when a SIGTERM stopped the comparison.

    Raises:
        UserError: under torchrun, and as `compare_models` does.
    """
    if is_torchrun():
        raise UserError("compare starts its runs itself: use --launcher ray --workers N in place of torchrun.")
    on_workers = Launcher(launcher, workers, connect)
    on_workers.check(experiment.table.lanes)
    text = compare_models(experiment, models, seeds, with_reference, split, on_workers, prepare_table)
    if text is None:
        return INTERRUPTED_EXIT_CODE
    print(f"\n{text}")
    return 0


def prepare_table(experiment: Experiment) -> Manifest:
    """Makes the feature table if it is not finished, and returns its manifest."""
    if not storage.exists(storage.join(experiment.table_folder, MANIFEST)):
        print(make_run_table(experiment, overwrite=False, connect=connect))
    return read_table(experiment)
