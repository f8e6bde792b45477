"""What the workers of a run have recorded (recorder/sitecustomize.py), and how runs are compared."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Digest = tuple[int, int]  # number of samples and the sum of their hashes


class Records:
    """What the workers of a run have recorded so far."""

    def __init__(self, folder: Path) -> None:
        """Reads the records of one run: MANYGATE_RECORDS/NAME."""
        self._lines = [
            json.loads(line)
            for file in sorted(folder.glob("*.jsonl"))
            for line in file.read_text().splitlines()
            if line.endswith("}")  # the last line of a lost machine may be cut off
        ]

    def last_step(self) -> int:
        """The last step that the first worker has made."""
        return max((line["step"] for line in self._lines if line["rank"] == 0), default=0)

    def attempts(self) -> "list[Attempt]":
        """The starts of the workers that made steps, in the order of time."""
        lines: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
        for line in self._lines:
            lines[line["job"], line["attempt"]].append(line)
        return sorted(map(Attempt, lines.values()), key=lambda made: made.start)


class Attempt:
    """What one start of the workers has recorded."""

    def __init__(self, lines: list[dict[str, Any]]) -> None:
        self.start = min(float(line["at"]) for line in lines)  # time of its first step, in seconds since 1970
        self.workers = int(lines[0]["workers"])
        self.machines = Counter(line["machine"] for line in lines if line["step"] == lines[0]["step"])
        self.steps: dict[int, dict[int, Digest]] = defaultdict(dict)  # step -> rank -> samples
        for line in lines:
            assert line["rank"] not in self.steps[line["step"]], f"a worker made a step twice: {line}"
            self.steps[line["step"]][line["rank"]] = line["rows"], line["digest"]

    @property
    def first_step(self) -> int:
        return min(self.steps)

    @property
    def last_step(self) -> int:
        return max(self.steps)

    def global_batches(self) -> dict[int, Digest]:
        """The samples of each step that all workers have made."""
        whole = {step: ranks.values() for step, ranks in sorted(self.steps.items()) if len(ranks) == self.workers}
        return {
            step: (sum(rows for rows, _ in parts), sum(digest for _, digest in parts) % 2**64)
            for step, parts in whole.items()
        }

    def repeats(self, earlier: "Attempt") -> list[int]:
        """The steps that an earlier attempt had made already, also if only some of its workers had."""
        return sorted(self.steps.keys() & earlier.steps.keys())


def sample_difference(expected: Records, found: Records) -> str | None:
    """The first global batch of a run that does not have the samples of the expected run; None if there is none."""
    (undisturbed,) = (attempt.global_batches() for attempt in expected.attempts())
    made: set[int] = set()
    for number, attempt in enumerate(found.attempts()):
        for step, samples in attempt.global_batches().items():
            made.add(step)
            if samples != undisturbed.get(step):
                return f"step {step} of attempt {number} has the samples {samples}, expected {undisturbed.get(step)}"
    missing = sorted(undisturbed.keys() - made)
    return f"no attempt trained on the batches of the steps {missing[:10]}" if missing else None


def losses(metrics: str) -> dict[tuple[int, str], float]:
    """The losses in the text of a metrics.jsonl: (step, task) -> loss."""
    records = [json.loads(line) for line in metrics.splitlines()]
    made: list[dict[str, Any]] = [record for record in records if record["kind"] == "train"]
    found = {(record["step"], task): values["loss"] for record in made for task, values in record["tasks"].items()}
    assert len(found) == sum(len(record["tasks"]) for record in made), "a step is there twice"
    return found


def loss_distance(expected: Mapping[Any, float], found: Mapping[Any, float]) -> float:
    """The largest relative difference of the losses of two runs, which must have the same steps."""
    assert expected.keys() == found.keys(), sorted(expected.keys() ^ found.keys())[:5]
    return max(abs(found[key] - value) / abs(value) for key, value in expected.items())
