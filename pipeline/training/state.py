"""Everything that decides the future of a run, in one list, and how it is saved and restored."""

import hashlib
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from pipeline.config.experiment import Experiment
from pipeline.errors import UserError
from pipeline.table.manifest import Manifest
from pipeline.table.settings import differences
from pipeline.training.checkpoint import AFRESH, Saved, load_own, load_tensors, save_checkpoint
from pipeline.training.progress import Progress
from pipeline.training.sharding import ShardedModel
from pipeline.training.window import TrainWindow
from pipeline.training.worker import Worker


@dataclass
class RunState:
    """The stateful parts of a run. The learning rates are no part: they follow from step and experiment."""

    model: ShardedModel  # weights, fused and dense optimizer state
    window: TrainWindow  # sums since the last log line
    progress: Progress
    worker: Worker  # whose random generators are saved

    def save(self, folder: str, settings: dict[str, Any]) -> Saved:
        """Saves all parts as one checkpoint. Collective."""
        state = {"progress": self.progress.to_dict(), **settings}
        return save_checkpoint(folder, self.progress.step, self._tensors(), self._own(), state, self.worker)

    def restore(self, saved: Saved, settings: dict[str, Any]) -> list[str]:
        """Takes over a checkpoint, after checking that it belongs to these settings. Collective.

        Returns:
            What is different now, each as `path: old -> new`: where there is nothing, the run goes on bit by bit.

        Raises:
            UserError: the checkpoint belongs to another table, model or order of samples.
        """
        state = saved.state()
        check_settings(saved, state, settings)
        tensors = self._tensors()
        load_tensors(saved, tensors, self.worker)
        self.model.module.load_state_dict(tensors["model"])
        self.model.optimizer.load_state_dict(tensors["optimizer"])
        self.progress.__dict__.update(Progress.from_dict(state["progress"]).__dict__)
        same_workers = state["workers"] == self.worker.workers
        states = load_own(saved, state["workers"], self._own(), self.worker)
        for own in states:
            self.window.add_state(own)
        if same_workers:
            set_random_state(states[0])
        else:
            seed_worker(settings["experiment"]["training"]["seed"], self.progress.step, self.worker)
        return changes(state, settings)

    def _tensors(self) -> dict[str, Any]:
        return {"model": self.model.module.state_dict(), "optimizer": self.model.optimizer.state_dict()}

    def _own(self) -> dict[str, torch.Tensor]:
        return {**random_state(self.worker), **self.window.state()}


def restore_weights(model: ShardedModel, saved: Saved, settings: dict[str, Any], worker: Worker) -> None:
    """Takes over the weights alone, for evaluation. Collective.

    Raises:
        UserError: the checkpoint belongs to another table or model.
    """
    check_table(saved, saved.state(), settings)
    tensors = {"model": model.module.state_dict()}
    load_tensors(saved, tensors, worker)
    model.module.load_state_dict(tensors["model"])


def run_settings(experiment: Experiment, manifest: Manifest, worker: Worker) -> dict[str, Any]:
    """What a checkpoint says of the run that made it."""
    return {
        "workers": worker.workers,
        "threads": torch.get_num_threads(),
        "device": worker.device.type,
        "experiment": experiment.model_dump(mode="json"),
        "table": {
            "fingerprint": manifest.fingerprint,
            "lanes": manifest.lanes,
            "table_rows": manifest.table_rows,
            "train_rows": manifest.rows("train"),
            "train_digest": manifest.digest("train"),
        },
        "versions": {name: version(name) for name in ("torch", "torchrec", "pyarrow")},
    }


def check_settings(saved: Saved, state: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raises UserError where going on from the checkpoint would not continue the run that made it."""
    check_table(saved, state, settings)
    before, now = state["table"], settings["table"]
    if before["train_digest"] != now["train_digest"]:
        raise UserError(
            f"The checkpoint {saved.uri} was trained on {before['train_rows']:,} rows of the train split; the feature "
            f"table now has other files ({now['train_rows']:,} rows), so its position means something else. Start "
            f"afresh: {AFRESH}."
        )
    before, now = state["experiment"]["training"], settings["experiment"]["training"]
    for key in ("global_batch_size", "seed", "shuffle_rows"):
        if before[key] != now[key]:
            raise UserError(
                f"The checkpoint {saved.uri} was made with training.{key}={before[key]}; the experiment says "
                f"{now[key]}, which would change the order of samples in the middle of a run. Change it back, or "
                f"start afresh: {AFRESH}."
            )
    for key in ("sparse_optimizer", "dense_optimizer"):
        if before[key]["kind"] != now[key]["kind"]:
            raise UserError(
                f"The checkpoint {saved.uri} has the state of training.{key}.kind={before[key]['kind']}; the "
                f"experiment says {now[key]['kind']}, which has another. Change it back, or start afresh: {AFRESH}."
            )


def changes(state: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """What differs between a checkpoint's run and this one, of all that decides its numbers."""
    parts = ("workers", "threads", "device", "versions")
    before, now = ({name: source[name] for name in parts} for source in (state, settings))
    found = list(differences(before, now, ""))
    old, new = ({**source["experiment"]["training"]} for source in (state, settings))
    for source in (old, new):
        for name in ("loop", "log_every_steps", "device"):  # loops agree bit by bit; the device is compared above
            del source[name]
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


def check_table(saved: Saved, state: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raises UserError where the checkpoint's model reads other embedding tables, features or labels."""
    before, now = state["table"], settings["table"]
    for name in sorted(before["table_rows"].keys() | now["table_rows"].keys()):
        old, new = before["table_rows"].get(name), now["table_rows"].get(name)
        if old != new:
            raise UserError(
                f"The checkpoint {saved.uri} has {_rows(old)} for the embedding table {name!r}, the feature table "
                f"{_rows(new)}: they belong to different experiments. Start afresh: {AFRESH}."
            )
    if before["fingerprint"] != now["fingerprint"]:
        raise UserError(
            f"The checkpoint {saved.uri} was trained on a feature table made with other settings. "
            f"Start afresh: {AFRESH}."
        )
    found = list(differences(_model_of(state["experiment"]), _model_of(settings["experiment"]), ""))
    if found:
        raise UserError(
            f"The checkpoint {saved.uri} is of another model: {'; '.join(found[:5])}. Change the experiment back, or "
            f"start afresh: {AFRESH}."
        )


def _model_of(experiment: dict[str, Any]) -> dict[str, Any]:
    """The parts of an experiment that decide what a model computes from its weights."""
    return {
        "model": experiment["model"],
        "features": [{k: v for k, v in feature.items() if k != "sharding"} for feature in experiment["features"]],
        "scenarios": experiment["scenarios"],
        "tasks": [{k: v for k, v in task.items() if k != "weight"} for task in experiment["tasks"]],
    }


def _rows(rows: int | None) -> str:
    return "no rows" if rows is None else f"{rows} rows"


def seed_worker(seed: int, step: int, worker: Worker) -> None:
    """Seeds this worker's generators, differently for every worker and step."""
    digest = hashlib.sha256(f"{seed}/{step}/{worker.rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little"))


def random_state(worker: Worker) -> dict[str, torch.Tensor]:
    """The generators that a step may draw from."""
    state = {"rng_cpu": torch.get_rng_state()}
    if worker.device.type == "cuda":
        state["rng_cuda"] = torch.cuda.get_rng_state(worker.device)
    return state


def set_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["rng_cpu"])
    if "rng_cuda" in state:
        torch.cuda.set_rng_state(state["rng_cuda"])
