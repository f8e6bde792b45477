"""Several models, each trained with several seeds, in one table with its noise.

Every run is an ordinary one in `runs/NAME/compare/`, over the feature table of the experiment. Seeds are the outer
loop: a comparison that was stopped is a fair one of fewer seeds. The same command again takes finished runs as they
are and continues with the rest.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from pipeline import storage
from pipeline.comparison.references import TaskScenario, make_references, ready_references
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
from pipeline.scoring.checkpoint_evaluation import evaluation_file
from pipeline.section import nearest
from pipeline.table.manifest import Manifest, read_manifest
from pipeline.workers.launch import Launcher

log = logging.getLogger(__name__)


@dataclass
class Comparison:
    """The runs that were asked for, in the order in which they are made, and the evaluations that are there by now."""

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
    ready_table: Callable[[Experiment], Manifest],
) -> str | None:
    """Trains, evaluates and compares, and writes `compare.json` and `compare.md` after every run.

    Args:
        experiment: what all variants start from; its feature table is made first where it is not there.
        models: flags and their values, see `make_variants`; the first is the baseline.
        seeds: such as ``0,1,2``.
        with_reference: also a model for each named value of the first scenario level and each task.
        split: that is evaluated.
        launcher: of training and evaluation.
        ready_table: gives the manifest of an experiment's feature table, which it makes where it is not finished.

    Returns:
        The text of `compare.md`; None where a SIGTERM stopped the comparison before its end.

    Raises:
        UserError: before anything is trained, where a variant is no valid experiment or needs another feature table,
            or a run of another experiment is where one of these is to be; later as `train_and_evaluate` does.
    """
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
    references = ready_references(references, base, manifest, split, ready_table)
    runs = in_order({**variants, **references}, chosen)
    check_same_runs(runs)
    comparison = Comparison(base, split, list(variants), list(references) if with_reference else None, runs)
    return write_comparison(comparison) if work_off(comparison, launcher) else None


def keep_experiment(experiment: Experiment) -> None:
    """Saves the experiment beside its comparison, for the report, where no run of its own has done so."""
    file = storage.join(experiment.folder, "experiment.yaml")
    if not storage.exists(file):
        storage.write_text(file, dump_experiment(experiment))


def work_off(comparison: Comparison, launcher: Launcher) -> bool:
    """Makes the runs that are not finished yet; False where it was interrupted."""
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
            is_finished = train_and_evaluate(run, comparison.split, launcher)
        except UserError as error:  # such as a variant that diverges: the others are compared all the same
            log.error("%s", error)
            failed.append(name)
            continue
        if not is_finished:
            log.info("The comparison was stopped in %s: the same command goes on from there.", name)
            return False
        evaluation = read_evaluation(evaluation_file(run.experiment, comparison.split))
        assert evaluation is not None
        done[folder] = evaluation
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
    return True


def take_finished(comparison: Comparison) -> None:
    """Takes the evaluations that are there. One of a split that has got more rows since is made again.

    Raises:
        UserError: the train split has other files than when a run was trained.
    """
    manifests = {table: read_manifest(table) for table in {run.experiment.table_folder for run in comparison.runs}}
    taken = []
    for run in comparison.runs:
        evaluation = read_evaluation(evaluation_file(run.experiment, comparison.split))
        if evaluation is None:
            continue
        manifest = manifests[run.experiment.table_folder]
        check_trained_on(run.experiment, manifest)
        if evaluation.rows == manifest.rows(comparison.split):
            comparison.done[run.experiment.folder] = evaluation
            taken.append(run.experiment.name)
    if taken:
        log.info("Finished already and taken as they are (%d): %s.", len(taken), ", ".join(taken))


def write_comparison(comparison: Comparison) -> str:
    """Writes `compare.json` and `compare.md` of the runs that are done; gives the text of the second."""
    base, runs = comparison.base, comparison.runs
    found: dict[str | TaskScenario, dict[int, Evaluation]] = {run.of: {} for run in runs}
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
