"""The flags of `submit` and `compare`, some of which may be given several times."""

import argparse
from functools import partial

from jobs.argument_types import pair


def add_submit_flags(parser: argparse.ArgumentParser) -> None:
    for flag, metavar, summary in (
        ("--env", "NAME=VALUE", "environment variable of the job, shown in the cluster's dashboard; not for secrets"),
        ("--secret", "NAME=FILE", "variable that each process of the job reads from a file of the cluster's machines"),
        ("--include", "PATH", "send this file or folder although git ignores it or its name looks private"),
    ):
        parser.add_argument(flag, action="append", default=[], metavar=metavar, help=f"{summary}; repeatable")
    parser.add_argument("--dry-run", action="store_true", help="print what would be sent, and send nothing")


def add_compare_flags(parser: argparse.ArgumentParser) -> None:
    """Models go into one list of (flag, text), in the given order: the first is the baseline."""
    for flag, metavar, summary in (
        ("--trunks", "KIND,KIND", "the experiment with each of these trunks"),
        ("--variant", "'NAME: key=value key=value'", "the experiment with these keys; may be given several times"),
    ):
        parser.add_argument(
            flag, dest="models", action="append", type=partial(pair, flag), default=[], metavar=metavar, help=summary
        )
    parser.add_argument(
        "--seeds", default="0,1,2", metavar="K,K", help="train each model once per seed (default 0,1,2)"
    )
    parser.add_argument("--reference", action="store_true", help="also train a model for each scenario and task alone")
    parser.add_argument("--split", default="test", help="split of the feature table (default test)")
