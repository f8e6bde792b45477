"""A checkpoint held against the experiment and the table before anything is changed by it."""

from dataclasses import dataclass

from pipeline.checkpoint.format import START_OVER_HINT, Checkpoint
from pipeline.checkpoint.progress import Progress
from pipeline.checkpoint.state_document import RunSettings
from pipeline.config.experiment import Experiment
from pipeline.documents import Json
from pipeline.errors import UserError
from pipeline.table.settings import Growth, differences, growth


def check_model(checkpoint: Checkpoint, saved: RunSettings, run: RunSettings) -> Growth:
    """Holds the checkpoint's model against that of the experiment, and its tables against those of the feature table.

    Args:
        checkpoint: the checkpoint.
        saved: the run that it says it is of.
        run: the run now.

    Returns:
        What the experiment has gained in scenarios and tasks. Embedding tables may have gained rows besides.

    Raises:
        UserError: the checkpoint's model reads other embedding tables, features or labels.
    """
    before, now = saved.table, run.table
    for name in sorted(before.table_rows.keys() | now.table_rows.keys()):
        old, new = before.table_rows.get(name), now.table_rows.get(name)
        if old is None or new is None or new < old:
            raise UserError(
                f"The checkpoint {checkpoint.uri} has {_rows(old)} for the embedding table {name!r}, the feature table "
                f"{_rows(new)}: they belong to different experiments. Start afresh: {START_OVER_HINT}."
            )
    old_experiment, new_experiment = _without_weights(saved.experiment), _without_weights(run.experiment)
    old_part, new_part = _fixed_part(old_experiment), _fixed_part(new_experiment)
    gained = growth(old_experiment, new_experiment)
    if gained is None or old_part != new_part:
        told = [
            *differences(old_part, new_part, ""),
            *differences(_growing_part(old_experiment), _growing_part(new_experiment), ""),
        ]
        raise UserError(
            f"The checkpoint {checkpoint.uri} is of another model: {'; '.join(told[:5])}. Change the experiment "
            f"back, or start afresh: {START_OVER_HINT}."
        )
    if before.lineage != now.lineage:
        raise UserError(
            f"The checkpoint {checkpoint.uri} was trained on ids of other encoders: the feature table was made "
            f"anew, and the same ids mean other values now. Start afresh: {START_OVER_HINT}."
        )
    if before.fingerprint != now.fingerprint and not gained:
        raise UserError(
            f"The checkpoint {checkpoint.uri} was trained on a feature table made with other settings. "
            f"Start afresh: {START_OVER_HINT}."
        )
    return gained


def check_going_on(
    checkpoint: Checkpoint, saved: RunSettings, run: RunSettings, progress: Progress, train: dict[str, str]
) -> Growth:
    """The same for training, which also has to find the samples and the optimizer's state as they were.

    Args:
        checkpoint: the checkpoint.
        saved: the run that it says it is of.
        run: the run now.
        progress: of the checkpoint.
        train: partitions of the train split, value -> digest of its files.

    Raises:
        UserError: going on from the checkpoint would not continue the run that made it.
    """
    gained = check_model(checkpoint, saved, run)
    before, now = (one.experiment.training.model_dump(mode="json") for one in (saved, run))
    for key in ("global_batch_size", "seed", "shuffle_rows"):
        if before[key] != now[key]:
            raise UserError(
                f"The checkpoint {checkpoint.uri} was made with training.{key}={before[key]}; the experiment says "
                f"{now[key]}, which would change the order of samples in the middle of a run. Change it back, or "
                f"start afresh: {START_OVER_HINT}."
            )
    for key in ("sparse_optimizer", "dense_optimizer"):
        if before[key]["kind"] != now[key]["kind"]:
            raise UserError(
                f"The checkpoint {checkpoint.uri} has the state of training.{key}.kind={before[key]['kind']}; the "
                f"experiment says {now[key]['kind']}, which has another. Change it back, or start afresh: "
                f"{START_OVER_HINT}."
            )
    if not gained:
        is_over = progress.ending(run.experiment.training) is not None
        _check_partitions(checkpoint, progress, train, is_over)
    return gained


def _check_partitions(checkpoint: Checkpoint, progress: Progress, train: dict[str, str], is_over: bool) -> None:
    other = sorted(value for value, digest in progress.partitions.items() if train.get(value, digest) != digest)
    if other:
        raise UserError(
            f"The checkpoint {checkpoint.uri} was trained on partition {', '.join(other[:5])}, of which the feature "
            f"table now has other files: its position means something else. Start afresh: {START_OVER_HINT}."
        )
    gone = sorted(progress.span.partitions.keys() - train.keys())
    if gone and not is_over:
        raise UserError(
            f"The checkpoint {checkpoint.uri} is in the middle of training on partition {', '.join(gone[:5])}, which "
            "is no longer in the train split: put logs.splits.train back until that is finished, or start afresh: "
            f"{START_OVER_HINT}."
        )


@dataclass(frozen=True)
class _Decisive:
    """What decides the numbers of a run and may change while it goes on."""

    places: Json
    training: Json
    weights: Json  # by task
    shardings: Json  # by feature


def changes(saved: RunSettings, run: RunSettings) -> list[str]:
    """What differs between a checkpoint's run and this one, of all that decides its numbers."""
    old, new = (_decisive(one) for one in (saved, run))
    found = list(differences(old.places, new.places, ""))
    found += differences(old.training, new.training, "training")
    found += [f"weight of {change}" for change in differences(old.weights, new.weights, "")]
    return found + [f"sharding of {change}" for change in differences(old.shardings, new.shardings, "")]


# Loops agree bit by bit; the device that was used is compared apart from the wish for one.
_WITHOUT_EFFECT = {"loop", "log_every_steps", "device", "max_restarts", "hang_timeout_s"}


def _decisive(run: RunSettings) -> _Decisive:
    experiment = run.experiment
    return _Decisive(
        places={"workers": run.workers, "threads": run.threads, "device": run.device, "versions": run.versions},
        training=experiment.training.model_dump(mode="json", exclude=_WITHOUT_EFFECT),
        weights={task.name: task.weight for task in experiment.tasks},
        shardings={feature.name: feature.model_dump(mode="json").get("sharding") for feature in experiment.features},
    )


def grown_tables(saved: RunSettings, run: RunSettings) -> dict[str, tuple[int, int]]:
    """Embedding tables that have more rows than those of a checkpoint: rows of before and of now."""
    before = saved.table.table_rows
    return {name: (before[name], rows) for name, rows in run.table.table_rows.items() if rows > before[name]}


def _without_weights(experiment: Experiment) -> Experiment:
    """The experiment as if all tasks had one weight, which decides nothing of what a model computes."""
    tasks = [task.model_copy(update={"weight": 1.0}) for task in experiment.tasks]
    return experiment.model_copy(update={"tasks": tasks})


def _fixed_part(experiment: Experiment) -> Json:
    """What decides how a model computes from its weights and cannot grow."""
    return {
        "model": experiment.model.model_dump(mode="json", exclude={"objective"}),
        "objective": _objective_of(experiment),
        "features": [feature.model_dump(mode="json", exclude={"sharding"}) for feature in experiment.features],
    }


def _growing_part(experiment: Experiment) -> Json:
    return experiment.model_dump(mode="json", include={"scenarios", "tasks"})


def _objective_of(experiment: Experiment) -> Json:
    """The objective with its core task by name: without one it is the last task, which another may have become."""
    rule = experiment.model.core_rule
    objective = {**experiment.model.objective.model_dump(mode="json"), "gradients": None}
    if rule is not None:
        objective["gradients"] = {**rule.model_dump(mode="json"), "core": rule.core or experiment.tasks[-1].name}
    return objective


def _rows(rows: int | None) -> str:
    return "no rows" if rows is None else f"{rows} rows"
