"""`manygate preprocess`: logs in, feature table out."""

from cluster.connect import connect
from pipeline.config.experiment import Experiment
from pipeline.preprocess.run_table import make_run_table


def run(experiment: Experiment, overwrite: bool) -> None:
    """Makes or continues the run's feature table and prints a summary.

    Raises:
        UserError: as `make_run_table` does.
    """
    print(make_run_table(experiment, overwrite, connect))
