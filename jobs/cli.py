"""The command line: reads it, calls the job, turns what comes back into an exit code.

Heavy modules are imported inside the handlers, so that `--help` answers at once.
"""

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING

from pipeline.console import configure_logging
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.config.experiment import Experiment

Command = Callable[[argparse.Namespace], int | None]


def doctor(args: argparse.Namespace) -> int:
    from jobs import doctor

    return doctor.run()


def preprocess(args: argparse.Namespace) -> None:
    experiment = read(args)
    from jobs import preprocess

    preprocess.run(experiment, overwrite=args.overwrite)


def train(args: argparse.Namespace) -> int:
    experiment = read(args)
    from jobs import train

    return train.run(experiment, launcher=args.launcher or "local", workers=args.workers, resume=args.resume)


def evaluate(args: argparse.Namespace) -> None:
    experiment = read(args)
    from jobs import evaluate

    evaluate.run(experiment, args.checkpoint, args.split, launcher=args.launcher or "local", workers=args.workers)


def predict(args: argparse.Namespace) -> None:
    experiment = read(args)
    from jobs import predict

    launcher = args.launcher or "local"
    predict.run(experiment, args.checkpoint, args.split, args.output, launcher=launcher, workers=args.workers)


def compare(args: argparse.Namespace) -> int:
    experiment = read(args)
    from jobs import compare

    launcher = args.launcher or "local"
    return compare.run(
        experiment, args.models, args.seeds, args.reference, args.split, launcher=launcher, workers=args.workers
    )


def report(args: argparse.Namespace) -> None:
    experiment = read(args)
    from jobs import report

    report.run(experiment)


def plan(args: argparse.Namespace) -> None:
    experiment = read(args)
    from jobs import plan

    plan.run(experiment, workers=args.workers, device=args.device, memory=args.memory)


def inspect(args: argparse.Namespace) -> None:
    from jobs import inspect

    inspect.run(args.path)


def read(args: argparse.Namespace) -> "Experiment":
    """The checked experiment. Libraries that do not fit together are told before any of them is imported."""
    from jobs.doctor import check_versions

    check_versions()
    from pipeline.config.load import load_experiment

    return load_experiment(args.experiment, args.overrides)


def submit(args: argparse.Namespace) -> int:
    from jobs import submit

    job = parse(args.job)
    if job.command not in submit.JOBS:
        raise UserError(f"{job.command} is no job that a cluster runs; these are: {', '.join(submit.JOBS)}.")
    return submit.run(job, address=args.address, follow_log=args.follow)


def status(args: argparse.Namespace) -> int:
    from jobs import submit

    return submit.status(args.id, args.address)


def logs(args: argparse.Namespace) -> int:
    from jobs import submit

    return submit.logs(args.id, args.address, follow_log=args.follow)


def stop(args: argparse.Namespace) -> int:
    from jobs import submit

    return submit.stop(args.id, args.address)


COMMANDS: dict[str, tuple[Command, str]] = {
    "doctor": (doctor, "versions, devices, cluster; says what to install"),
    "preprocess": (preprocess, "logs in, feature table out"),
    "train": (train, "train from the feature table, or go on from a checkpoint"),
    "evaluate": (evaluate, "metrics of a checkpoint, a task and a scenario"),
    "predict": (predict, "predictions of a checkpoint, as Parquet"),
    "compare": (compare, "train several models with several seeds, and tell what exceeds noise"),
    "report": (report, "a run as one HTML page: metrics, curves, experts, gradients"),
    "plan": (plan, "where each table would go, and whether it fits"),
    "inspect": (inspect, "a feature table or a checkpoint, in words"),
    "submit": (submit, "send a job to a Ray cluster"),
    "status": (status, "the state of a job sent, or of all of them"),
    "logs": (logs, "the log of a job sent"),
    "stop": (stop, "stop a job sent"),
}
TAKES_EXPERIMENT = ("preprocess", "train", "evaluate", "predict", "compare", "report", "plan")


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command. Overrides are no part of it: they may stand anywhere between the flags."""
    usage = "manygate COMMAND ... (manygate COMMAND --help tells more)"
    parser = argparse.ArgumentParser(prog="manygate", usage=usage)
    subparsers = parser.add_subparsers(prog="manygate", dest="command", required=True, metavar="COMMAND, one of")
    of: dict[str, argparse.ArgumentParser] = {}
    for name, (_, summary) in COMMANDS.items():
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


def pair(flag: str, text: str) -> tuple[str, str]:
    """A flag with its value, for argparse."""
    return flag, text


def positive(text: str) -> int:
    """A whole number above zero, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above zero, found {text!r}")
    return int(text)


def worker_count(text: str) -> int | tuple[int, int]:
    """A whole number above zero, or two with a dash between them, for argparse."""
    fewest, dash, most = text.partition("-")
    if not dash:
        return positive(text)
    if positive(fewest) > positive(most):
        raise argparse.ArgumentTypeError(f"expected a range such as 2-8, found {text!r}")
    return int(fewest), int(most)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads a command line; leaves with exit code 2 where it is wrong."""
    parser = build_parser()
    first = next((word for word in argv if not word.startswith("-")), None)
    if first is not None and first not in COMMANDS:
        close = get_close_matches(first, COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(COMMANDS)}"
        parser.error(f"there is no command {first!r}; {hint}")
    args, rest = parser.parse_known_args(argv)
    if args.command == "submit":
        args.job = rest
        if not rest:
            parser.error("submit: which job? For example: manygate submit train EXPERIMENT --address URL")
        return args
    overrides = args.command in TAKES_EXPERIMENT
    wrong = [word for word in rest if word.startswith("-") or "=" not in word or not overrides]
    if wrong:
        expected = "a flag of its own or key=value" if overrides else "a flag of its own"
        parser.error(f"{args.command}: {' '.join(wrong)} is not known here: expected {expected}")
    args.overrides = rest
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; gives its exit code: 0, 2 for a mistake of the user's, 130 when interrupted, or the job's own."""
    args = parse(sys.argv[1:] if argv is None else argv)
    configure_logging()
    try:
        return COMMANDS[args.command][0](args) or 0
    except UserError as error:
        if args.debug:
            traceback.print_exc()
        print(f"manygate: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # the machine's answer, such as "permission denied", says what is wrong
        if args.debug:
            traceback.print_exc()
        print(f"manygate: {error} (--debug shows where)", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("manygate: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
