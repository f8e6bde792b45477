"""Read by every Python process of a machine that starts: makes training workers record the samples of each step.

After each step, a worker appends a line to its own file in MANYGATE_RECORDS/NAME, with the name of its experiment:
the job, the attempt, the step, the worker, its machine, and the number and digest of its samples. The digests of all
workers, added up, are the digest of the global batch, in any order of rows and for any number of workers.

While the folder MANYGATE_RECORDS contains a file `hold`, the first worker waits after the step whose number is in it:
so a test can disturb a run at a certain step.
"""

import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

TRAINER = "pipeline.training.trainer"
POLL_S = 0.02


class Finder(MetaPathFinder):
    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == TRAINER else None  # type: ignore[arg-type]
        if spec is not None and spec.loader is not None:
            spec.loader = RecordingLoader(spec.loader)
        return spec


class RecordingLoader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        make_trainer_record(module)


def make_trainer_record(trainer: ModuleType) -> None:
    """Replaces the trainer by one that records."""
    import hashlib
    import json
    import time
    from pathlib import Path

    import ray

    folder = Path(os.environ["MANYGATE_RECORDS"])

    def digest(batch) -> tuple[int, int]:  # type: ignore[no-untyped-def]
        """Number of real rows, and the sum of hashes of their content: two equal rows count twice."""
        jagged = []
        for collection in (batch.ids, batch.sequences):
            for key in collection.keys() if collection is not None else ():
                values, lengths = collection[key].values().cpu().numpy(), collection[key].lengths().tolist()
                jagged.append((values, [0, *(sum(lengths[: i + 1]) for i in range(len(lengths)))]))
        dense = [part.cpu().numpy() for part in (batch.numerics, batch.labels, batch.scenarios, batch.noise_keys)]
        rows = [row for row, weight in enumerate(batch.weights.tolist()) if weight]
        total = 0
        for row in rows:
            content = hashlib.blake2b(digest_size=8)
            for part in dense:
                content.update(part[row].tobytes())
            for values, ends in jagged:
                content.update(b"|" + values[ends[row] : ends[row + 1]].tobytes())
            total += int.from_bytes(content.digest())
        return len(rows), total % 2**64

    class RecordingTrainer(trainer.Trainer):  # type: ignore[misc, name-defined]
        def __init__(self, experiment, *arguments, **named) -> None:  # type: ignore[no-untyped-def]
            super().__init__(experiment, *arguments, **named)
            self._digests: dict[object, tuple[int, int]] = {}
            context = ray.get_runtime_context() if ray.is_initialized() else None
            self._job = f"{context.get_session_name()}/{context.get_job_id()}" if context is not None else "none"
            self._machine = os.environ.get("MANYGATE_MACHINE", "none")
            self._file = folder / experiment.name / f"{self._machine}-{os.getpid()}-{time.time_ns()}.jsonl"
            self._file.parent.mkdir(exist_ok=True)

        def _prepare(self, batch):  # type: ignore[no-untyped-def]
            self._digests[batch.position] = digest(batch)
            return super()._prepare(batch)

        def _after_step(self, output):  # type: ignore[no-untyped-def]
            worker, step = self._worker, self._progress.step + 1
            rows, total = self._digests.pop(output.position)
            start = {"job": self._job, "attempt": worker.attempt, "workers": worker.workers, "rank": worker.rank}
            record = {**start, "machine": self._machine, "step": step, "rows": rows, "digest": total, "at": time.time()}
            with self._file.open("a") as file:
                file.write(json.dumps(record) + "\n")
            while worker.rank == 0 and is_held(step):
                time.sleep(POLL_S)
            return super()._after_step(output)

    def is_held(step: int) -> bool:
        try:
            return step >= int((folder / "hold").read_text())
        except (FileNotFoundError, ValueError):
            return False

    trainer.Trainer = RecordingTrainer  # type: ignore[attr-defined]


if "MANYGATE_RECORDS" in os.environ:
    sys.meta_path.insert(0, Finder())
