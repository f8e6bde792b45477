"""A checkpoint held against the experiment and the table before anything is changed by it."""

from typing import Any

from pipeline.checkpoint.format import START_OVER_HINT, Checkpoint
from pipeline.checkpoint.progress import Progress
from pipeline.config.experiment import Experiment
from pipeline.config.training import TrainingConfig
from pipeline.errors import UserError
from pipeline.table.settings import Growth, differences, growth


def check_model(checkpoint: Checkpoint, state: dict[str, Any], settings: dict[str, Any]) -> Growth:
    """Holds the checkpoint's model against that of the experiment, and its tables against those of the feature table.

    Returns:
        What the experiment has gained in scenarios and tasks. Embedding tables may have gained rows besides.

    Raises:
        UserError: the checkpoint's model reads other embedding tables, features or labels.
    """
    before, now = state["table"], settings["table"]
    for name in sorted(before["table_rows"].keys() | now["table_rows"].keys()):
        old, new = before["table_rows"].get(name), now["table_rows"].get(name)
        if old is None or new is None or new < old:
            raise UserError(
                f"The checkpoint {checkpoint.uri} has {_rows(old)} for the embedding table {name!r}, the feature table "
                f"{_rows(new)}: they belong to different experiments. Start afresh: {START_OVER_HINT}."
            )
    old_model, new_model = _model_of(state["experiment"]), _model_of(settings["experiment"])
    gained = growth(old_model, new_model)
    if gained is None or old_model["fixed"] != new_model["fixed"]:
        found = [*differences(old_model["fixed"], new_model["fixed"], ""), *differences(old_model, new_model, "")]
        told = [change for change in found if not change.startswith("fixed")]
        raise UserError(
            f"The checkpoint {checkpoint.uri} is of another model: {'; '.join(told[:5])}. Change the experiment "
            f"back, or start afresh: {START_OVER_HINT}."
        )
    if before["lineage"] != now["lineage"]:
        raise UserError(
            f"The checkpoint {checkpoint.uri} was trained on ids of other encoders: the feature table was made "
            f"anew, and the same ids mean other values now. Start afresh: {START_OVER_HINT}."
        )
    if before["fingerprint"] != now["fingerprint"] and not gained:
        raise UserError(
            f"The checkpoint {checkpoint.uri} was trained on a feature table made with other settings. "
            f"Start afresh: {START_OVER_HINT}."
        )
    return gained


def check_going_on(
    checkpoint: Checkpoint, state: dict[str, Any], settings: dict[str, Any], progress: Progress, train: dict[str, str]
) -> Growth:
    """The same for training, which also has to find the samples and the optimizer's state as they were.

    Args:
        checkpoint: the checkpoint.
        state: what it says.
        settings: those of the run now.
        progress: of the checkpoint.
        train: partitions of the train split, value -> digest of its files.

    Raises:
        UserError: going on from the checkpoint would not continue the run that made it.
    """
    gained = check_model(checkpoint, state, settings)
    before, now = state["experiment"]["training"], settings["experiment"]["training"]
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
        _check_partitions(checkpoint, progress, train, is_over=_is_over(settings, progress))
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


def _is_over(settings: dict[str, Any], progress: Progress) -> bool:
    return progress.ending(TrainingConfig.model_validate(settings["experiment"]["training"])) is not None


def changes(state: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """What differs between a checkpoint's run and this one, of all that decides its numbers."""
    parts = ("workers", "threads", "device", "versions")
    before, now = ({name: source[name] for name in parts} for source in (state, settings))
    found = list(differences(before, now, ""))
    old, new = ({**source["experiment"]["training"]} for source in (state, settings))
    for source in (old, new):
        for name in _WITHOUT_EFFECT:
            source.pop(name, None)
    found += differences(old, new, "training")
    old, new = (
        {task["name"]: task["weight"] for task in source["experiment"]["tasks"]} for source in (state, settings)
    )
    found += [f"weight of {change}" for change in differences(old, new, "")]
    plans = [
        {feature["name"]: feature.get("sharding") for feature in source["experiment"]["features"]}
        for source in (state, settings)
    ]
    return found + [f"sharding of {change}" for change in differences(plans[0], plans[1], "")]


# Loops agree bit by bit; the device that was used is compared apart from the wish for one.
_WITHOUT_EFFECT = ("loop", "log_every_steps", "device", "max_restarts", "hang_timeout_s")


def grown_tables(state: dict[str, Any], settings: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Embedding tables that have more rows than those of a checkpoint: rows of before and of now."""
    before, now = state["table"]["table_rows"], settings["table"]["table_rows"]
    return {name: (before[name], rows) for name, rows in now.items() if rows > before[name]}


def _model_of(experiment: dict[str, Any]) -> dict[str, Any]:
    """The parts of an experiment that decide what a model computes from its weights."""
    features = [{k: v for k, v in feature.items() if k != "sharding"} for feature in experiment["features"]]
    model = {slot: section for slot, section in experiment["model"].items() if slot != "objective"}
    return {
        "fixed": {"model": model, "objective": _objective_of(experiment), "features": features},
        "scenarios": experiment["scenarios"],
        "tasks": [{k: v for k, v in task.items() if k != "weight"} for task in experiment["tasks"]],
    }


def _objective_of(experiment: dict[str, Any]) -> dict[str, Any]:
    """The objective with its core task by name: without one it is the last task, which another may have become."""
    rule = Experiment.model_validate(experiment).model.core_rule
    objective = {**experiment["model"]["objective"], "gradients": None}
    if rule is not None:
        objective["gradients"] = {**rule.model_dump(), "core": rule.core or experiment["tasks"][-1]["name"]}
    return objective


def _rows(rows: int | None) -> str:
    return "no rows" if rows is None else f"{rows} rows"
