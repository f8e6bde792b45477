"""The runs of the soak: their small experiment, damage to their checkpoints, and how runs are compared."""

import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from benchmarks.soak_processes import ROOT
from pipeline.checkpoint.format import MARKER, complete_checkpoints
from pipeline.config.load import dump_experiment, load_experiment

SOURCE = ROOT / "examples/kuairand"
NAME = "soak"
DAYS = ("20220425", "20220426", "20220504", "20220505")
ROWS = 600  # of each day
SIDE_TABLES = ("user_features", "video_features", "user_history")
# Tolerances for runs on other numbers of workers. Rounding differences grow in 150 steps of Adam: initial weights that
# differ by one part in 8 million make losses differ by 7 in 10,000 and the moments of a tensor by 6 in 100. A batch
# that is lost or repeated changes the loss of its line by about 10 in 100, and lost moments differ by 100 in 100.
LOSSES_APART, FAR = 2e-3, 0.1
SEQUENCES = ("watched", "liked", "viewed_long")
KEYS = (
    f"name={NAME}",
    "logs.splits={train: [20220425, 20220426], valid: [20220504, 20220504], test: [20220505, 20220505]}",
    *(f"logs.joins.{place}.path={SOURCE}/{name}.parquet" for place, name in enumerate(SIDE_TABLES)),
    *(f"features.{name}.max_length=5" for name in SEQUENCES),
    "model.trunk={kind: aesm, hidden: [32]}",
    "training.device=cpu",
    "training.global_batch_size=64",
    "training.epochs=8",
    "training.early_stopping=null",
    "training.log_every_steps=2",
    "training.validate_every_steps=20",
    "training.schedule.warmup_steps=5",
    "checkpoint={every_steps: 5, keep_last: 3}",
    "evaluation.batch_size=128",
)


def write_experiment(folder: Path) -> Path:
    """Writes a slice of the bundled logs and the experiment file for it; returns the path of the file."""
    for day in DAYS:
        target = folder / f"log/date={day}/part-0.parquet"
        target.parent.mkdir(parents=True)
        pq.write_table(pq.ParquetFile(SOURCE / f"log/date={day}/part-0.parquet").read().slice(0, ROWS), target)
    experiment = load_experiment(SOURCE / "experiment.yaml", [*KEYS, f"logs.path={folder}/log"])
    file = folder / "experiment.yaml"
    file.write_text(dump_experiment(experiment))
    return file


def table_difference(expected: Path, found: Path) -> str | None:
    """The number of files in which two tables differ, and the first of them; None if there are none."""
    one, two = digests(expected), digests(found)
    differ = [name for name in sorted(one.keys() | two.keys()) if one.get(name) != two.get(name)]
    return f"{len(differ)} files of the table differ, the first: {differ[0]}" if differ else None


def digests(folder: Path) -> dict[str, str]:
    """Every file below a folder, with the hash of its bytes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run_difference(expected: Path, found: Path, scratch: Path, is_exact: bool) -> str | None:
    """The first difference found between two finished runs.

    Args:
        expected: folder of the first run.
        found: folder of the second run.
        scratch: folder for the tensors in another format.
        is_exact: compare bit by bit; otherwise, for other numbers of workers, within the tolerances above.
    """
    last, step = last_step(expected), last_step(found)
    if last != step:
        return f"the last checkpoint is of step {step}, expected {last}"
    one, two = tensors(expected, scratch / "expected.pt"), tensors(found, scratch / "found.pt")
    if not is_exact:  # the number of generators depends on the number of workers
        one, two = without_own(one), without_own(two)
    return tensor_difference(one, two, is_exact) or metrics_difference(metrics(expected), metrics(found), is_exact)


def last_step(run: Path) -> int | None:
    saved = complete_checkpoints(str(run / "checkpoints"))
    return saved[-1].step if saved else None


def tensors(run: Path, scratch: Path) -> dict[str, torch.Tensor]:
    """All tensors of the last checkpoint, by their full names."""
    dcp_to_torch_save(run / f"checkpoints/step-{last_step(run):08d}/data", scratch)
    return dict(flat(torch.load(scratch, weights_only=False)))


def flat(value: Any, prefix: str = "") -> list[tuple[str, torch.Tensor]]:
    if isinstance(value, dict):
        return [pair for name, part in value.items() for pair in flat(part, f"{prefix}{name}/")]
    return [(prefix, value)] if torch.is_tensor(value) else []


def without_own(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in values.items() if not name.startswith("own/")}


def tensor_difference(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], is_exact: bool) -> str | None:
    if one.keys() != two.keys():
        return f"the checkpoints have different tensors: {sorted(one.keys() ^ two.keys())[:3]}"
    for name, value in one.items():
        if is_exact and torch.equal(value, two[name]):
            continue
        distance = (two[name].double() - value.double()).norm().item()
        if is_exact or distance > FAR * value.double().norm().item():
            return f"the tensor {name} differs, by {distance:.3g} in length"
    return None


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without `samples_per_second`, the only number that depends on time."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        record.pop("samples_per_second", None)
    return records


def metrics_difference(one: list[dict[str, Any]], two: list[dict[str, Any]], is_exact: bool) -> str | None:
    places = [(record["kind"], record["step"]) for record in one]
    if places != [(record["kind"], record["step"]) for record in two]:
        return f"metrics.jsonl has different lines: {len(two)}, expected {len(one)}"
    for expected, found in zip(one, two, strict=True):
        if found != expected if is_exact else not losses_agree(expected, found):
            return f"metrics.jsonl differs in the line {expected['kind']} of step {expected['step']}"
    return None


def losses_agree(one: dict[str, Any], two: dict[str, Any]) -> bool:
    """Whether the losses of a training line agree up to rounding. Lines of validations follow from the weights."""
    if one["kind"] != "train":
        return True
    pairs = [(values["loss"], two["tasks"][task]["loss"]) for task, values in one["tasks"].items()]
    return all(math.isclose(a, b, rel_tol=LOSSES_APART) for a, b in pairs)


def damage_newest(run: Path, damaged: set[Path], rng: random.Random) -> str | None:
    """Damages a file of the newest complete checkpoint, if a sound one remains; returns the damage and the file."""
    found = [Path(saved.uri) for saved in complete_checkpoints(str(run / "checkpoints"))]
    if not found or found[-1] in damaged or damaged.issuperset(found[:-1]):
        return None
    damaged.add(found[-1])
    files = sorted(path for path in found[-1].rglob("*") if path.is_file() and path.name != MARKER)
    file, how = rng.choice(files), rng.choice(("flipped", "cut", "deleted"))
    data = bytearray(file.read_bytes())
    if how == "flipped":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del data[rng.randrange(len(data)) :]
    if how == "deleted":
        file.unlink()
    else:
        file.write_bytes(data)
    return f"{how}: {found[-1].name}/{file.relative_to(found[-1])}"
