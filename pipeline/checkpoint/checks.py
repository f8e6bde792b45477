"""Checks that a checkpoint fits the experiment and the feature table, before a run takes anything from it."""

from dataclasses import dataclass

from models.loss_config import BINARY_KEYS
from pipeline.checkpoint.format import START_OVER_HINT, Checkpoint
from pipeline.checkpoint.progress import Progress
from pipeline.checkpoint.state_document import RunSettings
from pipeline.config.experiment import Experiment
from pipeline.config.logs import TaskConfig
from pipeline.config.optimizer_kinds import SPARSE_OPTIMIZERS
from pipeline.documents import Json
from pipeline.errors import UserError
from pipeline.table.settings import GROWING_SECTIONS, Growth, differences, growth


def check_model(checkpoint: Checkpoint, saved: RunSettings, run: RunSettings) -> Growth:
    """Compares a checkpoint's model with the experiment's model, and its tables with those of the feature table.

    Args:
        checkpoint: the checkpoint.
        saved: settings of the run that made it, from its `state.json`.
        run: settings of the current run.

    Returns:
        The scenarios and tasks that the experiment has gained. Embedding tables may have gained rows as well.

    Raises:
        UserError: the checkpoint's model reads other embedding tables, features or labels.
    """
    before, now = saved.table, run.table
    for name in sorted(before.table_rows.keys() | now.table_rows.keys()):
        old, new = before.table_rows.get(name), now.table_rows.get(name)
        if old is None or new is None or new < old:
            raise UserError(
                f"The checkpoint {checkpoint.uri} has {_rows(old)} for the embedding table {name!r}, the feature table "
                f"{_rows(new)}: they belong to different experiments. Start over: {START_OVER_HINT}."
            )
    old_experiment, new_experiment = _without_free_keys(saved.experiment), _without_free_keys(run.experiment)
    old_part, new_part = _fixed_part(old_experiment), _fixed_part(new_experiment)
    gained = growth(old_experiment, new_experiment)
    if gained is None or old_part != new_part:
        changed = [
            *differences(old_part, new_part, ""),
            *differences(_growing_part(old_experiment), _growing_part(new_experiment), ""),
        ]
        raise UserError(
            f"The checkpoint {checkpoint.uri} is of another model: {'; '.join(changed[:5])}. Change the experiment "
            f"back, or start over: {START_OVER_HINT}."
        )
    if before.lineage != now.lineage:
        raise UserError(
            f"The checkpoint {checkpoint.uri} was trained on ids of other encoders: the feature table was made "
            f"again, and the same ids now stand for other values. Start over: {START_OVER_HINT}."
        )
    if before.fingerprint != now.fingerprint and not gained:
        raise UserError(
            f"The checkpoint {checkpoint.uri} was trained on a feature table made with other settings. "
            f"Start over: {START_OVER_HINT}."
        )
    return gained


def check_resume(
    checkpoint: Checkpoint, saved: RunSettings, run: RunSettings, progress: Progress, train: dict[str, str]
) -> Growth:
    """Does the checks of `check_model`, and those for training: the samples and the optimizers must be the same.

    Args:
        checkpoint: the checkpoint.
        saved: settings of the run that made it, from its `state.json`.
        run: settings of the current run.
        progress: of the checkpoint.
        train: partitions of the train split, value -> digest of its files.

    Raises:
        UserError: training from the checkpoint would not continue the run that made it.
    """
    gained = check_model(checkpoint, saved, run)
    before, now = (settings.experiment.training.model_dump(mode="json") for settings in (saved, run))
    for key in ("global_batch_size", "seed", "shuffle_rows"):
        if before[key] != now[key]:
            raise UserError(
                f"The checkpoint {checkpoint.uri} was made with training.{key}={before[key]}; the experiment has "
                f"{now[key]}, which would change the order of samples in the middle of a run. Change it back, or "
                f"start over: {START_OVER_HINT}."
            )
    for key in ("sparse_optimizer", "dense_optimizer"):
        if before[key]["kind"] != now[key]["kind"]:
            raise UserError(
                f"The checkpoint {checkpoint.uri} has the state of training.{key}.kind={before[key]['kind']}; the "
                f"experiment has {now[key]['kind']}, whose state is different. Change it back, or start over: "
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
            "table now has other files, so that the saved position means other samples. "
            f"Start over: {START_OVER_HINT}."
        )
    gone = sorted(progress.window.partitions.keys() - train.keys())
    if gone and not is_over:
        raise UserError(
            f"The checkpoint {checkpoint.uri} is in the middle of training on partition {', '.join(gone[:5])}, which "
            "is no longer in the train split: change logs.splits.train back until that is finished, or start over: "
            f"{START_OVER_HINT}."
        )


@dataclass(frozen=True)
class _Decisive:
    """Settings that decide the numbers of a run and may change when it resumes."""

    places: Json
    training: Json
    losses: Json  # key of `_OF_LOSSES` -> task -> value
    shardings: Json  # by feature


def changes(saved: RunSettings, run: RunSettings) -> list[str]:
    """The differences between a checkpoint's run and the current run in the settings that decide their numbers."""
    old, new = (_decisive(settings) for settings in (saved, run))
    found = list(differences(old.places, new.places, ""))
    found += differences(old.training, new.training, "training")
    for key in _OF_LOSSES:
        found += [f"{key} of {change}" for change in differences(old.losses[key], new.losses[key], "")]
    return found + [f"sharding of {change}" for change in differences(old.shardings, new.shardings, "")]


# Keys of tasks that change nothing in what a model computes from its weights.
_OF_LOSSES = ("weight", *BINARY_KEYS)
# Loops give the same numbers bit by bit. For the device, the one that was used is compared, not the setting.
_WITHOUT_EFFECT = {"loop", "log_every_steps", "device", "max_restarts", "hang_timeout_s"}


def _decisive(run: RunSettings) -> _Decisive:
    experiment = run.experiment
    tasks = [task.model_dump(mode="json") for task in experiment.tasks]
    return _Decisive(
        places={"workers": run.workers, "threads": run.threads, "device": run.device, "versions": run.versions},
        training=_decisive_training(experiment),
        losses={key: {task["name"]: task[key] for task in tasks} for key in _OF_LOSSES},
        shardings={feature.name: feature.sharding_type for feature in experiment.features},
    )


def _decisive_training(experiment: Experiment) -> Json:
    training = experiment.training.model_dump(mode="json", exclude=_WITHOUT_EFFECT)
    if not SPARSE_OPTIMIZERS[experiment.training.sparse_optimizer.kind].has_weight_decay:
        del training["sparse_optimizer"]["weight_decay"]  # earlier versions accepted and ignored it
    return training


def grown_tables(saved: RunSettings, run: RunSettings) -> dict[str, tuple[int, int]]:
    """Embedding tables that have more rows than in a checkpoint: name -> old and new number of rows."""
    before = saved.table.table_rows
    return {name: (before[name], rows) for name, rows in run.table.table_rows.items() if rows > before[name]}


def _without_free_keys(experiment: Experiment) -> Experiment:
    """The experiment with the defaults of those keys of tasks that change nothing in what a model computes."""
    free = {key: TaskConfig.model_fields[key].default for key in (*_OF_LOSSES, "prediction")}
    tasks = [task.model_copy(update=free) for task in experiment.tasks]
    return experiment.model_copy(update={"tasks": tasks})


def _fixed_part(experiment: Experiment) -> Json:
    """The settings that decide how a model computes from its weights, without those that can grow."""
    return {
        "model": experiment.model.model_dump(mode="json", exclude={"objective"}),
        "objective": _objective_of(experiment),
        "features": [feature.model_dump(mode="json", exclude={"sharding"}) for feature in experiment.features],
    }


def _growing_part(experiment: Experiment) -> Json:
    return experiment.model_dump(mode="json", include=set(GROWING_SECTIONS))


def _objective_of(experiment: Experiment) -> Json:
    """The objective with the name of its core task.

    If the experiment names none, its last task is the core task; adding a task can change which task that is.
    """
    rule = experiment.model.core_rule
    objective = {**experiment.model.objective.model_dump(mode="json"), "gradients": None}
    if rule is not None:
        objective["gradients"] = {**rule.model_dump(mode="json"), "core": rule.core or experiment.tasks[-1].name}
    return objective


def _rows(rows: int | None) -> str:
    return "no rows" if rows is None else f"{rows} rows"
