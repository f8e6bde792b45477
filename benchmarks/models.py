"""Cost of each trunk and each bottom: the time of a training step, as ratios measured side by side in one run.

    python -m benchmarks.models examples/kuairand/experiment.yaml [key=value ...]

Uses the experiment's feature table (preprocess first) and the same batches for all models. Steps of all models take
turns in a random order, so that other load on the machine affects all equally; the median over the rounds is reported.
One worker, in this process. Trunks are combined with the bottom `concat`, bottoms with the trunk `shared_bottom`; a
trunk takes over the keys that it shares with the experiment's own trunk.
"""

import random
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import cycle, islice

import torch
from torch import nn

from models.build import DenseModel
from models.config import BottomConfig, TargetBottom
from models.section import sections_by_kind
from pipeline.comparison.variants import TRUNKS, explicit_settings, trunk_section
from pipeline.config.experiment import Experiment
from pipeline.config.load import load_experiment, parse_experiment
from pipeline.evaluation.split_evaluation import split_reader
from pipeline.loading.batch import Batch
from pipeline.loading.position import Position
from pipeline.sharding.model_inputs import model_inputs
from pipeline.sharding.shard import shard
from pipeline.table.manifest import read_manifest
from pipeline.training.steps import PlainStep
from pipeline.workers.launch import run_without_ray
from pipeline.workers.worker import Worker

ROUNDS, WARM_UP = 25, 3
FIRST = "concat + shared_bottom"


def variants(experiment: Experiment) -> Iterator[tuple[str, Experiment]]:
    """Each trunk on `concat`, then each bottom that the features allow under `shared_bottom`."""
    data = explicit_settings(experiment)
    own = experiment.model.bottom
    bottoms = {}
    for kind, section in sections_by_kind(BottomConfig).items():
        if not issubclass(section, TargetBottom):
            bottoms[kind] = {"kind": kind}
        elif isinstance(own, TargetBottom):
            bottoms[kind] = {"kind": kind, "target": own.target}
    trunks = {kind: trunk_section(experiment, kind) for kind in TRUNKS}
    pairs = [("concat", kind) for kind in trunks] + [(kind, "shared_bottom") for kind in bottoms if kind != "concat"]
    for bottom, trunk in ((bottoms[bottom], trunks[trunk]) for bottom, trunk in pairs):
        model = data["model"] | {"bottom": bottom, "trunk": trunk}
        name = f"{bottom['kind']} + {trunk['kind']}"
        yield name, parse_experiment(data | {"model": model}, name)


def measure(worker: Worker, experiment: Experiment) -> None:
    manifest = read_manifest(experiment.table_folder)
    reader = split_reader(experiment, experiment.table_folder, manifest, "train", worker, [])
    batches = list(islice(reader.epoch(Position()), WARM_UP))
    seconds: dict[str, list[float]] = {}
    models = {name: build(worker, variant) for name, variant in variants(experiment)}
    names, order = list(models), random.Random(0)  # noqa: S311 - no secret
    for round_number, batch in enumerate(islice(cycle(batches), WARM_UP + ROUNDS)):
        order.shuffle(names)  # the previous model leaves its data in caches and memory
        for name in names:
            start = time.perf_counter()
            models[name][0](iter([batch]))
            if worker.device.type == "cuda":
                torch.cuda.synchronize()
            if round_number >= WARM_UP:
                seconds.setdefault(name, []).append(time.perf_counter() - start)
    report({name: statistics.median(seconds[name]) for name in models}, models, batches[0])


def build(worker: Worker, experiment: Experiment) -> tuple[PlainStep, int]:
    """A step of the model and its number of dense parameters."""
    model = shard(experiment, model_inputs(experiment, read_manifest(experiment.table_folder).table_rows), worker)
    dense: nn.Module = next(module for module in model.module.modules() if isinstance(module, DenseModel))
    return PlainStep(model, worker.device), sum(parameter.numel() for parameter in dense.parameters())


def report(medians: dict[str, float], models: dict[str, tuple[PlainStep, int]], batch: Batch) -> None:
    print(f"\nSteps of {batch.rows:,} rows; {FIRST}: {batch.rows / medians[FIRST]:,.0f} rows per second\n")
    print(f"| {'model':<24} | step time | dense parameters |\n| {'-' * 24} | --------: | ---------------: |")
    for name, median in medians.items():
        print(f"| {name:<24} | {median / medians[FIRST]:>9.2f} | {models[name][1]:>16,} |")


def main() -> None:
    """Measures the experiment that the command line names."""
    experiment = load_experiment(sys.argv[1], sys.argv[2:])
    batch = {"batch_size": experiment.training.global_batch_size}
    experiment = experiment.model_copy(update={"evaluation": experiment.evaluation.model_copy(update=batch)})

    def body(worker: Worker) -> None:
        measure(worker, experiment)

    run_without_ray(body, experiment.training.device)


if __name__ == "__main__":
    main()
