"""Everything that decides the future of a run, in one list, with its saving and restoring."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from pipeline.checkpoint.arithmetic import changes_since
from pipeline.checkpoint.checks import changes, check_resume, grown_tables
from pipeline.checkpoint.format import Checkpoint
from pipeline.checkpoint.grown_model import load_grown
from pipeline.checkpoint.progress import Progress
from pipeline.checkpoint.saving import Saver
from pipeline.checkpoint.state_document import CheckpointState, RunSettings, TrainedTable
from pipeline.checkpoint.tensors import load_own, load_tensors
from pipeline.config.experiment import Experiment
from pipeline.sharding.shard import ShardedModel
from pipeline.table.manifest import Manifest
from pipeline.table.settings import Growth
from pipeline.training.divergence import check_state
from pipeline.training.rate_jump import describe_jump
from pipeline.training.running_metrics import RunningMetrics
from pipeline.workers.worker import Worker


@dataclass(frozen=True)
class Restored:
    """How a run differs from the checkpoint that it resumes from."""

    changes: list[str]  # changed settings as `path: old -> new`
    arithmetic: list[str]  # sentences about changes of arithmetic since; with `changes` empty: resumes bit by bit
    gained: Growth  # new scenarios and tasks
    grown: list[str]  # one line per tensor that is larger or new
    jump: str | None  # of the learning rates, see `describe_jump`


@dataclass
class RunState:
    """The stateful parts of a run. Learning rates are not among them: they follow from step and experiment."""

    model: ShardedModel  # weights, fused and dense optimizer state
    running_metrics: RunningMetrics  # sums since the last log line
    progress: Progress
    worker: Worker  # whose random generators are saved

    def check_finite(self) -> None:
        """Raises DivergedError on every worker if the last losses or the state are not finite. Collective."""
        self.running_metrics.check_finite()
        check_state(self._tensors(), self.progress.step, self.worker)

    def save(self, saver: Saver, settings: RunSettings, done: Callable[[Checkpoint, float], None]) -> None:
        """Starts to save all parts as one checkpoint, see `Saver.start`. Collective."""
        state = CheckpointState.of(settings, self.progress).to_json()
        saver.start(self.progress.step, self._tensors(), self._own(), state, done)

    def restore(self, checkpoint: Checkpoint, settings: RunSettings, train: dict[str, str]) -> Restored:
        """Restores a checkpoint, after checking that it fits these settings. Collective.

        Args:
            checkpoint: the checkpoint.
            settings: of the current run, see `run_settings`.
            train: partitions of the train split, value -> digest of its files.

        Raises:
            UserError: the checkpoint belongs to another table, model or order of samples.
        """
        state = checkpoint.state()
        gained = check_resume(checkpoint, state, settings, state.progress, train)
        self.progress, tensors = state.progress, self._tensors()
        arithmetic = changes_since(state.arithmetic, settings.experiment)
        seed = settings.experiment.training.seed
        self.worker.heartbeat.beat(f"loading {checkpoint.uri}")
        rows = grown_tables(state, settings)
        grown = [f"the embedding table {name}: {old:,} -> {new:,} rows" for name, (old, new) in rows.items()]
        if gained:
            grown += load_grown(checkpoint, tensors, state, settings, self.worker)
            self._set_tensors(tensors)
            self.progress.forget_partitions()
            seed_worker(seed, self.progress.step, self.worker)
            return Restored([], arithmetic, gained, grown, jump=None)
        load_tensors(checkpoint, tensors, self.worker, rows)
        self._set_tensors(tensors)
        same_workers = state.workers == self.worker.workers
        states = load_own(checkpoint, state.workers, self._own(), self.worker)
        for own in states:
            self.running_metrics.add_state(own, state.arithmetic)
        if same_workers:
            set_random_state(states[0])
        else:
            seed_worker(seed, self.progress.step, self.worker)
        jump = describe_jump(state.experiment.training, settings.experiment.training, self.progress)
        return Restored(changes(state, settings), arithmetic, gained, grown, jump)

    def _set_tensors(self, tensors: dict[str, Any]) -> None:
        self.model.module.load_state_dict(tensors["model"])
        self.model.optimizer.load_state_dict(tensors["optimizer"])

    def _tensors(self) -> dict[str, Any]:
        return {"model": self.model.module.state_dict(), "optimizer": self.model.optimizer.state_dict()}

    def _own(self) -> dict[str, torch.Tensor]:
        return {**random_state(self.worker), **self.running_metrics.state()}


def run_settings(experiment: Experiment, manifest: Manifest, worker: Worker) -> RunSettings:
    """The settings of the current run, as its checkpoints record them."""
    return RunSettings(
        workers=worker.workers,
        threads=torch.get_num_threads(),
        device=worker.device.type,
        experiment=experiment,
        table=TrainedTable(manifest.fingerprint, manifest.lanes, manifest.lineage, manifest.table_rows),
        versions={name: version(name) for name in ("torch", "torchrec", "pyarrow")},
    )


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
