"""Compares several models, each trained with several seeds, in one table with their noise.

Every run is an ordinary run in `runs/NAME/compare/`, over the feature table of the experiment. Seeds are the outer
loop: a comparison that was stopped is a fair comparison with fewer seeds. The same command again reuses finished runs
and continues with the rest.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from pipeline import storage
from pipeline.comparison.references import TaskScenario, make_references, prepare_references
from pipeline.comparison.runs import (
    TIMING,
    ComparedRun,
    check_same_runs,
    check_trained_on,
    in_order,
    train_and_evaluate,
)
from pipeline.comparison.variants import make_variants, parse_seeds, place_variants
from pipeline.config.experiment import Experiment
from pipeline.config.load import dump_experiment
from pipeline.config.paths import with_absolute_paths
from pipeline.errors import UserError
from pipeline.evaluation.evaluation import Evaluation, read_evaluation
from pipeline.report.comparison import compare, format_comparison
from pipeline.run_folder import COMPARISON_FILE, evaluation_file
from pipeline.section import nearest
from pipeline.table.manifest import Manifest, read_manifest
from pipeline.workers.launch import Launcher

log = logging.getLogger(__name__)


@dataclass
class Comparison:
    """The requested runs, in the order in which they are made, and the evaluations finished so far."""

    base: Experiment
    split: str
    variants: list[str]
    references: list[TaskScenario] | None
    runs: list[ComparedRun]
    done: dict[str, Evaluation] = field(default_factory=dict)  # evaluations by the run's folder


def compare_models(
    experiment: Experiment,
    models: Sequence[tuple[str, str]],
    seeds: str,
    with_reference: bool,
    split: str,
    launcher: Launcher,
    prepare_table: Callable[[Experiment], Manifest],
) -> str | None:
    """Trains, evaluates and compares, and writes `compare.json` and `compare.md` after every run.

    Args:
        experiment: all variants start from it; its feature table is made first if it does not exist.
        models: flags and their values, see `make_variants`; the first is the baseline.
        seeds: such as ``0,1,2``.
        with_reference: also train a model for each named value of the first scenario level and each task.
        split: the split to evaluate.
        launcher: for training and evaluation.
        prepare_table: makes an experiment's feature table if it is not finished, and returns its manifest.

    Returns:
        The text of `compare.md`; None where a SIGTERM stopped the comparison before its end.

    Raises:
        UserError: before anything is trained, if a variant is not a valid experiment or needs another feature table,
            or if the folder of a run holds a run of another experiment; later as `train_and_evaluate` does.
    """
    if split not in experiment.logs.splits:
        raise UserError(f"logs.splits has no split {split!r}; {nearest(split, experiment.logs.splits)}")
    base = with_absolute_paths(experiment)
    chosen, variants = parse_seeds(seeds), place_variants(base, make_variants(base, models))
    references = make_references(base) if with_reference else {}
    check_same_runs(in_order(variants, chosen))
    model_count = len(variants) + len(references)
    counts = f"{len(variants)} variants" + (f" and {len(references)} references" if references else "")
    log.info("%s, with the seeds %s: %d runs.", counts, ", ".join(map(str, chosen)), model_count * len(chosen))
    manifest = prepare_table(base)
    save_experiment(base)
    references = prepare_references(references, base, manifest, split, prepare_table)
    runs = in_order({**variants, **references}, chosen)
    check_same_runs(runs)
    comparison = Comparison(base, split, list(variants), list(references) if with_reference else None, runs)
    return write_comparison(comparison) if make_runs(comparison, launcher) else None


def save_experiment(experiment: Experiment) -> None:
    """Saves the experiment beside its comparison, for the report, unless a run of this experiment has done so."""
    if not storage.exists(experiment.file):
        storage.write_text(experiment.file, dump_experiment(experiment))


def make_runs(comparison: Comparison, launcher: Launcher) -> bool:
    """Makes the runs that are not finished. Returns False if it was interrupted."""
    runs, done = comparison.runs, comparison.done
    reuse_finished(comparison)
    seconds: list[float] = []
    failed: list[str] = []
    for run in runs:
        name, folder = run.experiment.name, run.experiment.folder
        if folder in done:
            continue
        log.info("Run %d of %d: %s", len(done) + 1, len(runs), folder)
        start = time.monotonic()
        try:
            is_finished = train_and_evaluate(run, comparison.split, launcher)
        except UserError as error:  # such as a variant that diverges: the others are still compared
            log.error("%s", error)
            failed.append(name)
            continue
        if not is_finished:
            log.info("The comparison was stopped in %s: the same command continues from there.", name)
            return False
        evaluation = read_evaluation(evaluation_file(run.experiment.folder, comparison.split))
        assert evaluation is not None
        done[folder] = evaluation
        if any(run.model == comparison.variants[0] and run.experiment.folder in done for run in runs):
            write_comparison(comparison)  # the others can be compared with the baseline
        seconds.append(time.monotonic() - start)
        left = duration_in_words((len(runs) - len(done) - len(failed)) * fmean(seconds))
        log.info("Run %d of %d finished: %s in %.0f s; about %s left.", len(done), len(runs), name, seconds[-1], left)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed (see above): {', '.join(failed)}. If the baseline did not "
            f"fail, {storage.join(comparison.base.folder, 'compare.md')} compares the others. A comparison does not "
            "resume a run with other settings, such as lower learning rates: give them to its --variant, and delete "
            "the folder of the run."
        )
    return True


def reuse_finished(comparison: Comparison) -> None:
    """Reuses existing evaluations. An evaluation of a split that has gained rows since is made again.

    Raises:
        UserError: the train split has other files than when a run was trained.
    """
    manifests = {table: read_manifest(table) for table in {run.experiment.table_folder for run in comparison.runs}}
    reused = []
    for run in comparison.runs:
        evaluation = read_evaluation(evaluation_file(run.experiment.folder, comparison.split))
        if evaluation is None:
            continue
        manifest = manifests[run.experiment.table_folder]
        check_trained_on(run.experiment, manifest)
        if evaluation.rows == manifest.rows(comparison.split):
            comparison.done[run.experiment.folder] = evaluation
            reused.append(run.experiment.name)
    if reused:
        log.info("Already finished and reused (%d): %s.", len(reused), ", ".join(reused))


def write_comparison(comparison: Comparison) -> str:
    """Writes `compare.json` and `compare.md` of the finished runs; returns the text of `compare.md`."""
    base, runs = comparison.base, comparison.runs
    found: dict[str | TaskScenario, dict[int, Evaluation]] = {run.model: {} for run in runs}
    seconds: dict[str | TaskScenario, list[float]] = {run.model: [] for run in runs}
    for run in runs:
        if run.experiment.folder in comparison.done:
            found[run.model][run.seed] = comparison.done[run.experiment.folder]
            timing = storage.read_json(storage.join(run.experiment.folder, TIMING))
            seconds[run.model] += [timing["training_seconds"]] if timing else []
    references = None if comparison.references is None else {cell: found[cell] for cell in comparison.references}
    result = {
        "experiment": base.name,
        "split": comparison.split,
        **compare({name: found[name] for name in comparison.variants}, references),
        "seconds": {name: fmean(seconds[name]) if seconds[name] else None for name in comparison.variants},
    }
    storage.write_json(storage.join(base.folder, COMPARISON_FILE), result)
    labels = [label for level in base.scenarios for label in level.labels]
    text = f"{base.name}, {comparison.split} split, {result['rows']:,} rows\n\n{format_comparison(result, labels)}"
    storage.write_text(storage.join(base.folder, "compare.md"), text + "\n")
    return text


def duration_in_words(seconds: float) -> str:
    """A duration as a person would say it: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
