"""`manygate report`: shows the contents of a run's folder as one HTML page."""

from pipeline.config.experiment import Experiment
from pipeline.report.page import write_report


def run(experiment: Experiment) -> None:
    """Writes `report.html` into the run's folder and prints its path.

    Raises:
        UserError: the run was never trained.
    """
    print(write_report(experiment.folder))
