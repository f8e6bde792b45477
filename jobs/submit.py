"""`manygate submit`: sends a job to a Ray cluster."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from cluster import job_variables, submission
from cluster.client import open_client
from cluster.needed_files import check_is_inside
from jobs.submitted import watch
from pipeline.config.load import load_experiment
from pipeline.errors import UserError

log = logging.getLogger(__name__)


def run(
    job: argparse.Namespace,
    address: str | None,
    follow_log: bool,
    dry_run: bool,
    include: Sequence[str],
    env: Sequence[str],
    secret: Sequence[str],
) -> int:
    """Sends a job and, with `follow_log`, prints its log to the end.

    Args:
        job: the parsed command line of the job itself, as `jobs.cli` would run it here.
        address: URL of the cluster's dashboard.
        follow_log: print the log until the job ends, and return its exit code.
        dry_run: print what would be sent, and use no cluster.
        include, env, secret: the flags of these names.
    """
    if job.command not in submission.JOBS:
        raise UserError(f"{job.command} is not a job that a cluster can run; these are: {', '.join(submission.JOBS)}.")
    folder = Path.cwd()
    experiment = load_experiment(folder / check_is_inside(job.experiment, folder), job.overrides)
    variables, files = job_variables.plain_variables(env), job_variables.secret_files(secret)
    sent = submission.prepare(job, experiment, folder, include, variables, files)
    if dry_run:
        print(sent.describe())
    sent.check()
    if dry_run:
        return 0
    client = open_client(address)
    for line in (*sent.package.left_out(), *sent.notes()):
        log.info(line)
    submission.send(client, sent)
    url = client.get_address()
    log.info("Sent %s as %s: %d files.", job.command, sent.id, len(sent.package.files))
    if follow_log:
        return watch(client, sent.id, url)
    print(sent.id)
    log.info("To watch it: manygate logs %s --address %s --follow", sent.id, url)
    return 0
