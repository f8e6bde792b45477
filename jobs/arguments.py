"""The commands and their flags, as a parser."""

import argparse
from functools import partial

from jobs.argument_types import pair, positive, worker_count

COMMANDS = {
    "doctor": "versions, devices, cluster; says what to install",
    "preprocess": "logs in, feature table out",
    "train": "train from the feature table, or go on from a checkpoint",
    "evaluate": "metrics of a checkpoint, a task and a scenario",
    "predict": "predictions of a checkpoint, as Parquet",
    "compare": "train several models with several seeds, and tell what exceeds noise",
    "report": "a run as one HTML page: metrics, curves, experts, gradients",
    "plan": "where each table would go, and whether it fits",
    "inspect": "a feature table or a checkpoint, in words",
    "submit": "send a job to a Ray cluster",
    "status": "the state of a job sent, or of all of them",
    "logs": "the log of a job sent",
    "stop": "stop a job sent",
}
TAKES_EXPERIMENT = ("preprocess", "train", "evaluate", "predict", "compare", "report", "plan")


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command. Overrides are no part of it: they may stand anywhere between the flags."""
    usage = "manygate COMMAND ... (manygate COMMAND --help tells more)"
    parser = argparse.ArgumentParser(prog="manygate", usage=usage)
    subparsers = parser.add_subparsers(prog="manygate", dest="command", required=True, metavar="COMMAND, one of")
    of: dict[str, argparse.ArgumentParser] = {}
    for name, summary in COMMANDS.items():
        of[name] = subparsers.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        of[name].add_argument("--debug", action="store_true", help="show the traceback of an error")
    for name in TAKES_EXPERIMENT:
        of[name].usage = f"manygate {name} EXPERIMENT [flags] [key=value ...]"
        of[name].add_argument("experiment", metavar="EXPERIMENT", help="experiment file; key=value overrides its keys")
    of["preprocess"].add_argument("--overwrite", action="store_true", help="make the feature table anew")
    of["train"].add_argument("--resume", default="auto", help="auto (default), never, or the path of a checkpoint")
    for name in ("evaluate", "predict"):
        of[name].add_argument("--checkpoint", default="latest", help="latest (default), best, or a path")
        of[name].add_argument("--split", default="test", help="split of the feature table (default test)")
    of["predict"].add_argument("--output", required=True, metavar="DIR", help="folder or URI for the predictions")
    add_flags_of_compare(of["compare"])
    for name in ("train", "evaluate", "predict", "compare"):
        of[name].add_argument("--launcher", choices=["local", "ray"], help="local (default): in this process")
        told = "worker processes; a range such as 2-8 lets Ray use what is there"
        of[name].add_argument("--workers", type=worker_count, metavar="N", help=told)
    of["plan"].add_argument("--workers", type=positive, required=True, metavar="N", help="workers to plan for")
    of["plan"].add_argument("--device", choices=["cpu", "cuda"], default="cuda", help="of each worker (default cuda)")
    of["plan"].add_argument("--memory", default="80GiB", help="of each worker's device (default 80GiB)")
    of["inspect"].add_argument("path", metavar="PATH", help="folder or URI of a feature table or a checkpoint")
    of["submit"].usage = "manygate submit JOB EXPERIMENT --address URL [--follow] [the job's flags] [key=value ...]"
    of["status"].add_argument("id", nargs="?", metavar="SUBMISSION_ID", help="without it: all jobs")
    for name in ("logs", "stop"):
        of[name].add_argument("id", metavar="SUBMISSION_ID")
    for name in ("submit", "logs"):
        of[name].add_argument("--follow", action="store_true", help="until the job ends, with the job's exit code")
    for name in ("submit", "status", "logs", "stop"):
        of[name].add_argument("--address", metavar="URL", help="Ray's dashboard (default: the head started here)")
    return parser


def add_flags_of_compare(parser: argparse.ArgumentParser) -> None:
    """Models go into one list of (flag, text), in the order in which they were given: the first is the baseline."""
    for flag, metavar, summary in (
        ("--trunks", "KIND,KIND", "the experiment with each of these trunks"),
        ("--variant", "'NAME: key=value key=value'", "the experiment with these keys; may be given several times"),
    ):
        parser.add_argument(
            flag, dest="models", action="append", type=partial(pair, flag), default=[], metavar=metavar, help=summary
        )
    parser.add_argument("--seeds", default="0,1,2", metavar="K,K", help="each model once with each (default 0,1,2)")
    parser.add_argument("--reference", action="store_true", help="also a model for each scenario and task alone")
    parser.add_argument("--split", default="test", help="split of the feature table (default test)")
