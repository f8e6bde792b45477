"""Absolute paths of an experiment's folders, for processes in another working folder."""

from pipeline import storage
from pipeline.config.experiment import Experiment


def with_absolute_paths(experiment: Experiment) -> Experiment:
    """The experiment with absolute paths of its run and its feature table: Ray workers have another working folder."""
    table = experiment.table
    if table.path is not None:
        table = table.model_copy(update={"path": storage.absolute(table.path)})
    return experiment.model_copy(update={"output": storage.absolute(experiment.output), "table": table})
