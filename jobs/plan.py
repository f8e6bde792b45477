"""`manygate plan`: where each table would go on a cluster that is not here, and whether it fits."""

import re

import torch
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.planner import Topology

from jobs.launching import read_table
from models.embedding import SharedEmbedding
from models.inputs import ModelInputs
from pipeline.config.experiment import Experiment
from pipeline.console import in_bytes
from pipeline.errors import UserError
from pipeline.sharding.model_inputs import model_inputs
from pipeline.sharding.module import DenseStep, TrainingModule
from pipeline.sharding.shard import PooledSharder, make_sharding_plan, table_constraints

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
BYTES = 4  # a weight
STATE_BYTES = {"rowwise_adagrad": 0, "adagrad": 4, "sgd": 0, "adam": 8}  # a weight; row-wise: one number a row


def run(experiment: Experiment, workers: int, device: str, memory: str) -> None:
    """Prints the plan.

    Raises:
        UserError: the tables do not fit, the workers do not divide the lanes, or the memory is no size.
    """
    limit = parse_bytes(memory)
    manifest = read_table(experiment)
    if experiment.training.global_batch_size % workers or manifest.lanes % workers:
        raise UserError(
            f"{workers} workers must divide the {manifest.lanes} lanes of the feature table and the global batch of "
            f"{experiment.training.global_batch_size}."
        )
    inputs = model_inputs(experiment, manifest.table_rows)
    dense = DenseStep(experiment.model, inputs, bf16=False)
    module = TrainingModule(SharedEmbedding(inputs, torch.device("meta")), dense)
    caps = {"hbm_cap": limit} if device == "cuda" else {"ddr_cap": limit}
    topology = Topology(world_size=workers, local_world_size=min(workers, 8), compute_device=device, **caps)
    local_batch = experiment.training.global_batch_size // workers
    plan = make_sharding_plan(
        module, [PooledSharder(), EmbeddingCollectionSharder()], topology, table_constraints(experiment), local_batch
    )
    sizes = table_bytes(experiment, inputs)
    placed = [0.0] * workers
    print(f"{'table':<20} {'rows':>14} {'dim':>5} {'with optimizer':>15}  placement")
    for part in plan.plan.values():
        for name, parameter in sorted(part.items()):
            table = inputs.table(name)
            ranks = parameter.ranks or []
            for rank in ranks:
                placed[rank] += sizes[name] / len(ranks)
            where = f"{parameter.sharding_type} on {describe_ranks(ranks, workers)}"
            print(f"{name:<20} {table.rows:>14,} {table.dim:>5} {in_bytes(sizes[name]):>15}  {where}")
    dense_bytes = sum(p.numel() for p in dense.parameters()) * BYTES * 4  # weight, gradient, two moments
    needed = max(placed) + dense_bytes
    if needed > limit:
        raise UserError(
            f"It does not fit: the fullest worker needs {in_bytes(needed)} ({in_bytes(max(placed))} of tables, "
            f"{in_bytes(dense_bytes)} of dense part) and has {in_bytes(limit)}. Use more workers or a smaller model."
        )
    print(
        f"\nFits: at most {in_bytes(max(placed))} of tables and {in_bytes(dense_bytes)} of dense part a worker, "
        f"of {in_bytes(limit)}."
    )


def table_bytes(experiment: Experiment, inputs: ModelInputs) -> dict[str, int]:
    """Bytes of each table with its optimizer state."""
    kind = experiment.training.sparse_optimizer.kind
    row_state = 4 if kind == "rowwise_adagrad" else 0
    return {t.name: t.rows * (t.dim * (BYTES + STATE_BYTES[kind]) + row_state) for t in inputs.tables}


def parse_bytes(text: str) -> int:
    """Bytes of a size such as ``80GiB``.

    Raises:
        UserError: it is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise UserError(f"--memory: {text!r} is no size; write it as 80GiB or 512MiB.")
    return int(float(match[1]) * UNITS[match[2].upper()])


def describe_ranks(ranks: list[int], workers: int) -> str:
    distinct = sorted(set(ranks))
    if len(distinct) == workers and workers > 1:
        return f"all {workers} workers"
    return f"worker{'s' if len(distinct) > 1 else ''} {', '.join(map(str, distinct))}"
