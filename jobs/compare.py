"""`manygate compare`: several models, each trained with several seeds, in one table with its noise.

Every run is an ordinary one in `runs/NAME/compare/`, over the feature table of the experiment. Seeds are the outer
loop: a comparison that was stopped is a fair one of fewer seeds. The same command again takes finished runs as they
are and goes on with the rest.
"""

import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

from jobs import preprocess, train
from jobs.evaluate import evaluate_on_worker
from jobs.launching import launch_on_workers, read_table, with_absolute_paths
from pipeline import storage
from pipeline.checkpoint.format import find_checkpoint
from pipeline.checkpoint.progress import Progress
from pipeline.comparison.variants import make_variants, parse_seeds, single_task_reference, with_enough_steps
from pipeline.config.experiment import Experiment
from pipeline.config.load import dump_experiment, parse_experiment
from pipeline.config.table_experiment import RUN_NAME
from pipeline.errors import UserError
from pipeline.report.comparison import compare, format_comparison
from pipeline.section import nearest
from pipeline.table.manifest import MANIFEST, SCENARIO, Manifest, read_manifest
from pipeline.table.settings import differences, table_settings
from pipeline.workers.launch import Workers, is_torchrun
from pipeline.workers.stop import INTERRUPTED_EXIT_CODE
from pipeline.workers.worker import Worker

log = logging.getLogger(__name__)

TIMING = "timing.json"
"""In a run's folder: wall seconds of its training, where that was not interrupted."""

TaskScenario = tuple[str, str]  # a task and the label of a scenario


@dataclass(frozen=True)
class ComparedRun:
    """One model with one seed."""

    of: str | TaskScenario  # the variant, or what a reference is the reference of
    seed: int
    experiment: Experiment


@dataclass
class Comparison:
    """The runs that were asked for, in the order in which they are made, and the evaluations that are there by now."""

    base: Experiment
    split: str
    variants: list[str]
    references: list[TaskScenario] | None
    runs: list[ComparedRun]
    done: dict[str, Any] = field(default_factory=dict)  # evaluations by the run's folder


def run(
    experiment: Experiment,
    models: Sequence[tuple[str, str]],
    seeds: str,
    with_reference: bool,
    split: str,
    launcher: str,
    workers: Workers,
) -> int:
    """Trains, evaluates and compares, and writes `compare.json` and `compare.md` after every run.

    Args:
        experiment: what all variants start from; its feature table is made first where it is not there.
        models: flags and their values, see `make_variants`; the first is the baseline.
        seeds: such as ``0,1,2``.
        with_reference: also a model for each named value of the first scenario level and each task.
        split: that is evaluated.
        launcher: of training and evaluation, ``local`` or ``ray``.
        workers: of training and evaluation.

    Returns:
        The exit code: 0, or that of a training that was told to stop.

    Raises:
        UserError: before anything is trained, where a variant is no valid experiment or needs another feature table,
            or a run of another experiment is where one of these is to be; later as `train` and `evaluate` do.
    """
    if is_torchrun():
        raise UserError("compare starts its runs itself: use --launcher ray --workers N in place of torchrun.")
    if split not in experiment.logs.splits:
        raise UserError(f"logs.splits has no split {split!r}; {nearest(split, experiment.logs.splits)}.")
    base = with_absolute_paths(experiment)
    chosen, variants = parse_seeds(seeds), place_variants(base, make_variants(base, models))
    references = make_references(base) if with_reference else {}
    check_same_runs(in_order(variants, chosen))
    models_in_all = len(variants) + len(references)
    told = f"{len(variants)} variants" + (f" and {len(references)} references" if references else "")
    log.info("%s, with the seeds %s: %d runs.", told, ", ".join(map(str, chosen)), models_in_all * len(chosen))
    manifest = ready_table(base)
    keep_experiment(base)
    references = ready_references(references, base, manifest, split)
    runs = in_order({**variants, **references}, chosen)
    check_same_runs(runs)
    comparison = Comparison(base, split, list(variants), list(references) if with_reference else None, runs)
    code = work_off(comparison, launcher, workers)
    if code == 0:
        print(f"\n{write_comparison(comparison)}")
    return code


def place_variants(base: Experiment, variants: dict[str, Experiment]) -> dict[str, Experiment]:
    """The variants as runs over the experiment's feature table, of a seed that is still to be given.

    Raises:
        UserError: a variant would need another table.
    """
    for name, variant in variants.items():
        found = [
            *differences(table_settings(base), table_settings(variant), ""),
            *differences(base.logs.model_dump(mode="json"), variant.logs.model_dump(mode="json"), "logs"),
            *differences(base.table.path, variant.table.path, "table.path"),
        ]
        if found:
            raise UserError(
                f"The variant {name} needs another feature table ({'; '.join(dict.fromkeys(found))}), and a comparison "
                "has one for all: change logs, table, features, scenarios and tasks in the experiment itself."
            )
    return {
        name: placed(variant, f"{base.folder}/compare", name, base.table_folder) for name, variant in variants.items()
    }


def make_references(base: Experiment) -> dict[TaskScenario, Experiment]:
    """A reference for each named value of the first scenario level and each task, see `single_task_reference`."""
    level, folder = base.scenarios[0], f"{base.folder}/compare/reference"
    references = {}
    for i, value in enumerate(level.values):
        name = f"{level.name}-{value}"
        if not re.fullmatch(RUN_NAME, name):
            name = f"{re.sub('[^A-Za-z0-9_.-]', '_', name)}-{i}"
        for task in base.tasks:
            experiment = single_task_reference(base, value, task)
            references[task.name, level.labels[i]] = placed(
                experiment, folder, f"{name}-{task.name}", f"{folder}/{name}-table"
            )
    return references


def placed(experiment: Experiment, output: str, name: str, table: str) -> Experiment:
    settings = experiment.table.model_copy(update={"path": table})
    return experiment.model_copy(update={"output": output, "name": name, "table": settings})


def in_order(experiments: Mapping[Any, Experiment], seeds: list[int]) -> list[ComparedRun]:
    """All runs: every experiment with the first seed, then with the next."""
    runs = []
    for seed in seeds:
        for of, experiment in experiments.items():
            training = experiment.training.model_copy(update={"seed": seed})
            update = {"name": f"{experiment.name}-seed-{seed}", "training": training}
            runs.append(ComparedRun(of, seed, experiment.model_copy(update=update)))
    return runs


def check_same_runs(runs: list[ComparedRun]) -> None:
    """Raises UserError where a run was begun with another experiment than the one that is wanted now."""
    for experiment in (run.experiment for run in runs):
        folder, there = experiment.folder, storage.list_folder(experiment.folder)
        if "checkpoints" not in there and not any(name.startswith("evaluation-") for name in there):
            continue
        file = storage.join(folder, "experiment.yaml")
        earlier = parse_experiment(yaml.safe_load(storage.read_text(file)), file)
        changes = list(differences(earlier.model_dump(mode="json"), experiment.model_dump(mode="json"), ""))
        if changes:
            raise UserError(
                f"{folder} is a run of another experiment: {'; '.join(changes[:5])}. Delete that folder to train it "
                "anew, change the experiment back, or give the variant another name."
            )


def keep_experiment(experiment: Experiment) -> None:
    """Saves the experiment beside its comparison, for the report, where no run of its own has done so."""
    file = storage.join(experiment.folder, "experiment.yaml")
    if not storage.exists(file):
        storage.write_text(file, dump_experiment(experiment))


def ready_table(experiment: Experiment) -> Manifest:
    """The manifest of the feature table, which is made where it is not finished."""
    if not storage.exists(storage.join(experiment.table_folder, MANIFEST)):
        preprocess.run(experiment, overwrite=False)
    return read_table(experiment)


def ready_references(
    references: dict[TaskScenario, Experiment], base: Experiment, manifest: Manifest, split: str
) -> dict[TaskScenario, Experiment]:
    """The references with their feature tables made and a global batch that is not too large for their rows.

    Left out, with a warning, are those of scenarios that have no rows in a split: there is nothing to learn or measure.

    Args:
        references: of all scenarios.
        base: the experiment that they are held against.
        manifest: of its feature table.
        split: that is evaluated.
    """
    ready: dict[TaskScenario, Experiment] = {}
    counts = {name: rows_by_scenario(base, manifest, name) for name in base.logs.splits} if references else {}
    for (task, label), experiment in references.items():
        index = base.scenarios[0].labels.index(label)
        empty = [name for name, of_scenario in counts.items() if not of_scenario[index]]
        if empty:
            log.warning("%s has no rows in the split %s: no reference of %s.", label, ", ".join(empty), task)
            continue
        folder_name = experiment.table_folder.rpartition("/")[2]
        table = ready_table(experiment.model_copy(update={"name": folder_name}))  # its experiment.yaml lies in it
        own, expected = table.rows(split), counts[split][index]
        if own != expected:
            log.warning(
                f"The reference of {label} is measured on {own:,} rows of the {split} split, the variants on "
                f"{expected:,}: the logs have changed since one of the tables was made, or one cannot use all rows."
            )
        ready[task, label] = with_enough_steps(experiment, table.rows("train"), manifest.rows("train"))
    return ready


def rows_by_scenario(experiment: Experiment, manifest: Manifest, split: str) -> list[int]:
    """Rows of a split in each scenario of the first level."""
    level = experiment.scenarios[0]
    counts = np.zeros(len(level.labels), np.int64)
    for file in chain.from_iterable(chain.from_iterable(partition.lanes for partition in manifest.split(split))):
        filesystem, path = storage.resolve(storage.join(experiment.table_folder, file.path))
        column = pq.read_table(path, columns=[SCENARIO + level.name], filesystem=filesystem, partitioning=None)[0]
        counts += np.bincount(column.to_numpy(), minlength=len(counts))
    return counts.tolist()


def work_off(comparison: Comparison, launcher: str, workers: Workers) -> int:
    """Makes the runs that are not finished yet; the exit code."""
    runs, done = comparison.runs, comparison.done
    take_finished(comparison)
    seconds: list[float] = []
    failed: list[str] = []
    for run in runs:
        name, folder = run.experiment.name, run.experiment.folder
        if folder in done:
            continue
        log.info("Run %d of %d: %s", len(done) + 1, len(runs), folder)
        start = time.monotonic()
        try:
            code = train_and_evaluate(run, comparison.split, launcher, workers)
        except UserError as error:  # such as a variant that diverges: the others are compared all the same
            log.error("%s", error)
            failed.append(name)
            continue
        if code != 0:
            log.info("The comparison was stopped in %s: the same command goes on from there.", name)
            return code
        done[folder] = storage.read_json(evaluation_file(run, comparison.split))
        if any(run.of == comparison.variants[0] and run.experiment.folder in done for run in runs):
            write_comparison(comparison)  # there is something to hold the others against
        seconds.append(time.monotonic() - start)
        left = duration_in_words((len(runs) - len(done) - len(failed)) * fmean(seconds))
        log.info("Run %d of %d finished: %s in %.0f s; about %s left.", len(done), len(runs), name, seconds[-1], left)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed, as told above: {', '.join(failed)}. Where the baseline did "
            f"not, {comparison.base.folder}/compare.md compares the others."
        )
    return 0


def take_finished(comparison: Comparison) -> None:
    """Takes the evaluations that are there. One of a split that has got more rows since is made again.

    Raises:
        UserError: the train split has other files than when a run was trained.
    """
    manifests = {table: read_manifest(table) for table in {run.experiment.table_folder for run in comparison.runs}}
    taken = []
    for run in comparison.runs:
        evaluation = storage.read_json(evaluation_file(run, comparison.split))
        if evaluation is None:
            continue
        manifest = manifests[run.experiment.table_folder]
        check_trained_on(run.experiment, manifest)
        if evaluation["rows"] == manifest.rows(comparison.split):
            comparison.done[run.experiment.folder] = evaluation
            taken.append(run.experiment.name)
    if taken:
        log.info("Finished already and taken as they are (%d): %s.", len(taken), ", ".join(taken))


def check_trained_on(experiment: Experiment, manifest: Manifest) -> None:
    """Raises UserError where a run's last checkpoint was trained on other files than the table has now."""
    saved = find_checkpoint(experiment.checkpoint_folder, "latest")
    progress = Progress.from_dict(saved.state()["progress"]) if saved is not None else None
    if progress is not None and progress.partitions != manifest.digests("train"):
        raise UserError(
            f"{experiment.folder} was trained on other files of the train split than {experiment.table_folder} has "
            "now: delete that folder to train it anew, so that all runs are of one table."
        )


def train_and_evaluate(run: ComparedRun, split: str, launcher: str, workers: Workers) -> int:
    """One run from where it stands to its evaluation; the exit code.

    Raises:
        UserError: as `train` and `evaluate` do, with the name of the run.
    """
    experiment = run.experiment
    is_new = not storage.list_folder(experiment.checkpoint_folder)
    start = time.monotonic()
    try:
        code = train.run(experiment, launcher, workers, resume="auto")
        if code != 0:
            return code
        if is_new:
            timing = {"training_seconds": time.monotonic() - start}
            storage.write_json(storage.join(experiment.folder, TIMING), timing)
        checkpoint = best_or_latest(experiment)
        is_told_to_stop = launch_on_workers(
            evaluate_run, experiment, launcher, workers, checkpoint=checkpoint, split=split
        )
    except UserError as error:
        raise UserError(f"{experiment.name}: {error}") from error
    return INTERRUPTED_EXIT_CODE if is_told_to_stop else 0


def evaluate_run(worker: Worker, experiment: Experiment, checkpoint: str, split: str) -> bool:
    """Evaluates on this worker; whether a SIGTERM came meanwhile, which Ray's launcher turns into a wish."""
    evaluate_on_worker(worker, experiment, checkpoint, split)
    return worker.stop.is_set()


def best_or_latest(experiment: Experiment) -> str:
    """`best` where one is known: not without early stopping, nor where its metric was undefined all along."""
    saved = find_checkpoint(experiment.checkpoint_folder, "latest")
    assert saved is not None
    return "latest" if saved.state()["progress"]["best_step"] is None else "best"


def evaluation_file(run: ComparedRun, split: str) -> str:
    return storage.join(run.experiment.folder, f"evaluation-{split}.json")


def write_comparison(comparison: Comparison) -> str:
    """Writes `compare.json` and `compare.md` of the runs that are done; gives the text of the second."""
    base, runs = comparison.base, comparison.runs
    found: dict[str | TaskScenario, dict[int, dict[str, Any]]] = {run.of: {} for run in runs}
    seconds: dict[str | TaskScenario, list[float]] = {run.of: [] for run in runs}
    for run in runs:
        if run.experiment.folder in comparison.done:
            found[run.of][run.seed] = comparison.done[run.experiment.folder]
            timing = storage.read_json(storage.join(run.experiment.folder, TIMING))
            seconds[run.of] += [timing["training_seconds"]] if timing else []
    references = None if comparison.references is None else {cell: found[cell] for cell in comparison.references}
    result = {
        "experiment": base.name,
        "split": comparison.split,
        **compare({name: found[name] for name in comparison.variants}, references),
        "seconds": {name: fmean(seconds[name]) if seconds[name] else None for name in comparison.variants},
    }
    storage.write_json(storage.join(base.folder, "compare.json"), result)
    labels = [label for level in base.scenarios for label in level.labels]
    text = f"{base.name}, {comparison.split} split, {result['rows']:,} rows\n\n{format_comparison(result, labels)}"
    storage.write_text(storage.join(base.folder, "compare.md"), text + "\n")
    return text


def duration_in_words(seconds: float) -> str:
    """A time as a person says it: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
