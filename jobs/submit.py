"""`manygate submit`: sends a job to a Ray cluster."""

import argparse
import logging
from pathlib import Path

from cluster import submission
from cluster.client import open_client
from jobs.submitted import watch
from pipeline.config.load import load_experiment
from pipeline.errors import UserError
from pipeline.storage import absolute

log = logging.getLogger(__name__)


def run(job: argparse.Namespace, address: str | None, follow_log: bool) -> int:
    """Sends a job and, with `follow_log`, prints its log to the end.

    Args:
        job: the parsed command line of the job itself, as `jobs.cli` would run it here.
        address: URL of the cluster's dashboard.
        follow_log: print the log until the job ends, and return its exit code.
    """
    if job.command not in submission.JOBS:
        raise UserError(f"{job.command} is not a job that a cluster can run; these are: {', '.join(submission.JOBS)}.")
    folder = Path.cwd()
    file = submission.relative_to_folder(job.experiment, folder)
    experiment = load_experiment(folder / file, job.overrides)
    client = open_client(address)
    output = absolute(experiment.output)
    if experiment.output != output:
        log.info("The cluster writes to %s: it must be a folder that all its machines share.", output)
    name, url = submission.send(client, job, file, experiment, folder), client.get_address()
    log.info("Sent %s as %s.", job.command, name)
    if follow_log:
        return watch(client, name, url)
    print(name)
    log.info("To watch it: manygate logs %s --address %s --follow", name, url)
    return 0
