"""One function per command of `jobs.cli`, which passes the arguments to the command's job.

Jobs are imported inside the functions, so that `--help` responds at once.
"""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.config.experiment import Experiment


def doctor(args: argparse.Namespace) -> int:
    from jobs import doctor

    return doctor.run()


def pipeline(args: argparse.Namespace) -> int:
    experiment = read(args)
    from jobs import pipeline

    launcher = args.launcher or "local"
    return pipeline.run(experiment, args.checkpoint, args.split, launcher=launcher, workers=args.workers)


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
    """The checked experiment. Library versions are checked first, before any of the libraries is imported."""
    from cluster.diagnosis import check_versions

    check_versions()
    from pipeline.config.load import load_experiment
    from pipeline.log_records import log_fields

    experiment = load_experiment(args.experiment, args.overrides)
    log_fields.begin(experiment.name, worker=None)
    return experiment
