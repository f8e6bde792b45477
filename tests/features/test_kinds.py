"""Every kind of feature, from the log to the model. For a new kind, add its samples to SAMPLES."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.embedding import SharedEmbedding
from pipeline.features.kinds import FEATURE_KINDS
from pipeline.loading.position import Position
from pipeline.loading.reader import Reader
from pipeline.preprocess.discover import read_files
from pipeline.preprocess.encode import load_encoders
from pipeline.preprocess.job import preprocess
from pipeline.preprocess.partitions import find_partitions
from pipeline.preprocess.preprocess_plan import make_preprocess_plan
from pipeline.preprocess.units import UnitRows, all_columns, cut_units
from pipeline.sharding.model_inputs import batch_columns, model_inputs
from pipeline.sharding.module import DenseStep, TrainingModule
from tests.preprocess.logs import experiment, read_split

ROWS = 6


@dataclass(frozen=True)
class Sample:
    """A feature, its column in a log of six rows, and the expected results, computed by hand."""

    keys: dict[str, Any]  # of the experiment file, without `name` and `column`
    log: pa.Array  # one value per row
    table: list[Any]  # its column in the feature table, one value per row
    rows: int | None  # rows of its embedding table; None: it has no table
    missing: int  # number of nulls among the values
    fault: tuple[Any, str] | None = None  # a value that cannot be used, and the reason


SAMPLES = [
    Sample(
        {"kind": "categorical", "ids": {"vocabulary": {"min_count": 2}}, "dim": 4},
        pa.array(["b", "a", "b", None, "b", "c"]),
        [2, 1, 2, 0, 2, 1],
        rows=3,
        missing=1,
    ),
    Sample(
        {"kind": "categorical", "ids": {"vocabulary": {}}, "dim": 4},
        pa.array([7, 7, None, 9, 7, 9], pa.float64()),
        [2, 2, 0, 3, 2, 3],
        rows=4,
        missing=1,
        fault=(2.5, "value is not a whole number"),
    ),
    Sample(
        {"kind": "multivalued", "separator": ",", "ids": {"vocabulary": {}}, "dim": 4},
        pa.array(["x, y", "y", None, "", "y,z", "x"]),
        [[3, 2], [2], [], [], [2, 4], [3]],
        rows=5,
        missing=0,
    ),
    Sample(
        {"kind": "multivalued", "separator": ",", "weights": ":", "ids": {"vocabulary": {}}, "dim": 4},
        pa.array(["x:2, y", "y:0.5", None, "", "y:1,z : 3", "x:.25"]),
        [[3, 2], [2], [], [], [2, 4], [3]],
        rows=5,
        missing=0,
        fault=("x:1,y:-1", "a weight is negative"),
    ),
    Sample(
        {"kind": "sequence", "ids": {"vocabulary": {}}, "dim": 4, "max_length": 2},
        pa.array([[1, 2, 3], [3], None, [], [None, 3, 2], [1]]),
        [[3, 2], [2], [], [], [2, 3], [4]],
        rows=5,
        missing=1,
    ),
    Sample(
        {"kind": "sequence", "separator": ",", "ids": {"vocabulary": {}}, "dim": 4, "max_length": 2},
        pa.array(["1,2,3", " 3 ", None, "", ",3,,2 ", "1"]),
        [[3, 2], [2], [], [], [2, 3], [4]],
        rows=5,
        missing=0,
    ),
    Sample(
        {"kind": "numeric", "encode": {"quantiles": 2}, "dim": 4},
        pa.array([1, 2, 3, 4, None, 2], pa.float64()),
        [2, 3, 3, 3, 0, 3],
        rows=4,
        missing=1,
        fault=(float("inf"), "value is infinite"),
    ),
    Sample(
        {"kind": "numeric", "encode": {"standardize": "identity"}},
        pa.array([10, 12, 10, 12, None, None], pa.float64()),
        [-1, 1, -1, 1, 0, 0],
        rows=None,
        missing=2,
        fault=(1e39, "value is too large for float32"),
    ),
]
NAMED = {f"{sample.keys['kind']}_{number}": sample for number, sample in enumerate(SAMPLES)}
EACH = pytest.mark.parametrize("name", NAMED)


class Made:
    """The feature table of all samples. Day 1 is the train split; day 2 has the same rows and one row per fault."""

    def __init__(self, folder: Path) -> None:
        self.table = str(folder / "table")
        self.experiment = experiment(
            folder,
            logs={"joins": [], "splits": {"train": [1, 1], "test": [2, 2]}, "max_quarantined": 1.0},
            table={"lanes": 2},
            features=[{"name": name, "column": name, **sample.keys} for name, sample in NAMED.items()],
            scenarios=[{"name": "tab", "column": "tab", "values": [0]}],
            tasks=[{"name": "click", "column": "click", "kind": "binary"}],
        )
        good = {name: sample.log for name, sample in NAMED.items()}
        write(folder / "log/day=1/good.parquet", good)
        write(folder / "log/day=2/good.parquet", good)
        for name, sample in NAMED.items():
            if sample.fault is not None:
                odd = {other: column.slice(0, 1) for other, column in good.items()}
                odd[name] = pa.array([sample.fault[0]], sample.log.type)
                write(folder / f"log/day=2/{name}.parquet", odd)
        self.manifest = preprocess(self.experiment, self.table)


def write(path: Path, columns: dict[str, pa.Array]) -> None:
    rows = len(next(iter(columns.values())))
    others = {"row": range(rows), "tab": [row % 2 for row in range(rows)], "click": [row % 2 for row in range(rows)]}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({**columns, **{name: pa.array(values) for name, values in others.items()}}), path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, ray_is_up: None) -> Made:
    return Made(tmp_path_factory.mktemp("kinds"))


def test_every_kind_has_a_sample() -> None:
    assert set(FEATURE_KINDS) == {sample.keys["kind"] for sample in SAMPLES}


@EACH
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_table_has_the_values_computed_by_hand(made: Made, name: str, split: str) -> None:
    sample, (partition,) = NAMED[name], made.manifest.split(split)
    column = read_split(Path(made.table), made.manifest, split)[name]
    found = [value.tolist() if isinstance(value, np.ndarray) else value for value in column]
    assert found == sample.table
    assert made.manifest.table_rows.get(name) == sample.rows
    assert partition.missing[name] == sample.missing
    if sample.rows is not None:
        assert partition.unknown.get(name, 0) == sum(np.ravel(value).tolist().count(1) for value in sample.table)


def test_faults_are_quarantined_with_their_reason(made: Made) -> None:
    (partition,) = made.manifest.split("test")
    faults = {name: sample.fault for name, sample in NAMED.items()}
    assert partition.reasons == Counter(f"feature {name}: {fault[1]}" for name, fault in faults.items() if fault)


@EACH
@settings(derandomize=True, deadline=None, max_examples=20)
@given(order=st.lists(st.integers(0, ROWS - 1), max_size=2 * ROWS))
def test_each_row_is_encoded_independently(made: Made, name: str, order: list[int]) -> None:
    sections = made.experiment.table_experiment
    found = read_files(sections.logs, find_partitions(sections.logs).partitions)[0]
    plan = make_preprocess_plan(sections, made.table, found.files)
    rows = UnitRows(plan, cut_units(found)[0], all_columns(plan))
    feature = next(feature for feature in sections.features if feature.name == name)
    encoder = load_encoders(sections, made.table, 1)[name]
    whole = feature.encode_rows(encoder, rows, np.arange(ROWS)).values
    some = feature.encode_rows(encoder, rows, np.array(order, dtype=np.int64))
    assert whole.type == some.values.type == feature.column_type
    assert some.values.to_pylist() == [whole[row].as_py() for row in order]
    assert some.ids >= some.missing + (some.unknown or 0)


def test_every_kind_reaches_the_model(made: Made) -> None:
    """Each embedding table gets a gradient in the rows of the batch; standardised numbers enter the model directly."""
    inputs = model_inputs(made.experiment, made.manifest.table_rows)
    columns = batch_columns(made.experiment, inputs)
    assert {*columns.ids, *columns.sequences, *columns.numerics} == set(NAMED)
    reader = Reader(made.table, made.manifest, "train", columns, global_batch_size=ROWS, rank=0, workers=1)
    (batch,) = reader.epoch(Position())
    torch.manual_seed(0)
    embedding = SharedEmbedding(inputs, torch.device("cpu"))
    loss, _ = TrainingModule(embedding, DenseStep(made.experiment.model, inputs, bf16=False))(batch)
    loss.backward()
    gradients = {key.split(".")[-2]: table.grad for key, table in embedding.named_parameters()}
    assert set(gradients) == {name for name, sample in NAMED.items() if sample.rows is not None}
    for name, gradient in gradients.items():
        assert gradient is not None and gradient.shape[0] == NAMED[name].rows
        seen = {int(id_) for value in NAMED[name].table for id_ in np.ravel(value)}
        assert set(gradient.abs().sum(dim=1).nonzero().ravel().tolist()) == seen


@EACH
def test_keys_are_the_same_in_the_resolved_experiment(made: Made, name: str) -> None:
    (feature,) = [feature for feature in made.experiment.features if feature.name == name]
    kind = FEATURE_KINDS[NAMED[name].keys["kind"]]
    assert kind.model_validate(feature.model_dump(mode="json")) == feature
    assert kind.outside_table <= kind.model_fields.keys() - {"name", "column", "kind"}
