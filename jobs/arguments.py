"""The commands and their flags, as a parser."""

import argparse

from jobs.argument_types import positive, size, worker_count
from jobs.repeated_flags import add_compare_flags, add_submit_flags

COMMANDS = {
    "doctor": "check versions, devices and the cluster, and print what to install",
    "pipeline": "preprocess, train, evaluate and report, without what is done already",
    "preprocess": "turn logs into a feature table",
    "train": "train from the feature table, or resume from a checkpoint",
    "evaluate": "print the metrics of a checkpoint per task and scenario",
    "predict": "write the predictions of a checkpoint as Parquet",
    "compare": "train several models with several seeds, and show which differences exceed noise",
    "report": "write a run as one HTML page: metrics, curves, experts, gradients",
    "plan": "print where each table would be placed, and whether it fits",
    "inspect": "describe a feature table or a checkpoint",
    "submit": "send a job to a Ray cluster",
    "status": "print the state of a submitted job, or of all of them",
    "logs": "print the log of a submitted job",
    "stop": "stop a submitted job",
}
TAKES_EXPERIMENT = ("pipeline", "preprocess", "train", "evaluate", "predict", "compare", "report", "plan")


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command. Overrides are not part of it: they may appear anywhere between the flags."""
    usage = "manygate COMMAND ... (details: manygate COMMAND --help)"
    parser = argparse.ArgumentParser(prog="manygate", usage=usage)
    parser.set_defaults(log_format=None)
    subparsers = parser.add_subparsers(prog="manygate", dest="command", required=True, metavar="COMMAND")
    sub: dict[str, argparse.ArgumentParser] = {}
    for name, summary in COMMANDS.items():
        sub[name] = subparsers.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        sub[name].add_argument("--debug", action="store_true", help="show the traceback of an error")
    for name in TAKES_EXPERIMENT:
        sub[name].usage = f"manygate {name} EXPERIMENT [flags] [key=value ...]"
        sub[name].add_argument("experiment", metavar="EXPERIMENT", help="experiment file; key=value overrides its keys")
        text = "log lines for people (text, the default) or as one JSON object per line; submit uses json"
        sub[name].add_argument("--log-format", choices=["text", "json"], help=text)
    sub["preprocess"].add_argument("--overwrite", action="store_true", help="make the feature table again")
    sub["train"].add_argument("--resume", default="auto", help="auto (default), never, or the path of a checkpoint")
    for name in ("evaluate", "predict"):
        sub[name].add_argument("--checkpoint", default="latest", help="latest (default), best, or a path")
        sub[name].add_argument("--split", default="test", help="split of the feature table (default test)")
    sub["predict"].add_argument("--output", required=True, metavar="DIR", help="folder or URI for the predictions")
    text = "what is evaluated: latest, best or a path (default: best with training.early_stopping, otherwise latest)"
    sub["pipeline"].add_argument("--checkpoint", metavar="CHOICE", help=text)
    sub["pipeline"].add_argument("--split", help="split that is evaluated (default: test, or valid without test)")
    add_compare_flags(sub["compare"])
    for name in ("pipeline", "train", "evaluate", "predict", "compare"):
        sub[name].add_argument("--launcher", choices=["local", "ray"], help="local (default): in this process")
        text = "worker processes; with a range such as 2-8, Ray uses as many as it has room for"
        sub[name].add_argument("--workers", type=worker_count, metavar="N", help=text)
    sub["plan"].add_argument(
        "--workers", type=positive, required=True, metavar="N", help="number of workers to plan for"
    )
    sub["plan"].add_argument(
        "--device", choices=["cpu", "cuda"], default="cuda", help="device of each worker (default cuda)"
    )
    text = "memory of each worker's device (default: 80GiB on cuda, cluster.memory_per_worker or this machine's on cpu)"
    sub["plan"].add_argument("--memory", type=size, help=text)
    sub["inspect"].add_argument("path", metavar="PATH", help="folder or URI of a feature table or a checkpoint")
    sub["submit"].usage = "manygate submit JOB EXPERIMENT --address URL [flags] [the job's flags] [key=value ...]"
    add_submit_flags(sub["submit"])
    sub["status"].add_argument("id", nargs="?", metavar="SUBMISSION_ID", help="default: all jobs")
    for name in ("logs", "stop"):
        sub[name].add_argument("id", metavar="SUBMISSION_ID")
    for name in ("submit", "logs"):
        sub[name].add_argument(
            "--follow", action="store_true", help="print the log until the job ends, and exit with its exit code"
        )
    sub["logs"].add_argument("--json", action="store_true", help="print log records as JSON, as the job wrote them")
    for name in ("submit", "status", "logs", "stop"):
        sub[name].add_argument("--address", metavar="URL", help="Ray's dashboard (default: the local head)")
    return parser
