"""Weight decay: of the embedding tables, where the kernels have it, and of the dense part."""

import logging
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
    WeightDecayMode,
)
from torch import Tensor

from jobs import pipeline
from pipeline.checkpoint.arithmetic import changes_since
from pipeline.checkpoint.choice import AUTO, LATEST
from pipeline.comparison.runs import ComparedRun, check_same_runs
from pipeline.config.experiment import Experiment
from pipeline.config.optimizer_kinds import DENSE_OPTIMIZERS, SPARSE_OPTIMIZERS
from pipeline.config.training import DenseOptimizerConfig, SparseOptimizerConfig
from pipeline.errors import UserError
from pipeline.scoring.checkpoint_evaluation import evaluate_on_worker
from pipeline.sharding.optimizers import DENSE_CLASSES, check_weight_decay, dense_optimizer
from pipeline.training.run import train
from pipeline.workers.launch import Launcher
from tests import synthetic
from tests.training.runs import assert_identical, continued, new_run, run_on, tensors
from tests.workers import one_worker

KERNELS = {
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "sgd": EmbOptimType.EXACT_SGD,
}
MODES = (WeightDecayMode.L2, WeightDecayMode.DECOUPLE)
ROWS, DIM, LR, DECAY = 6, 8, 0.1, 0.5
IDS, OFFSETS = torch.tensor([0, 1, 1, 3, 3, 3, 4]), torch.tensor([0, 2, 4, 7])  # rows 2 and 5 are not touched


def table_after(kind: str, mode: WeightDecayMode, decay: float, pooling: PoolingMode) -> tuple[Tensor, Tensor]:
    """A table after two steps of fbgemm's kernel, and the gradient of its output in both."""
    torch.manual_seed(0)
    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(ROWS, DIM, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=KERNELS[kind],
        pooling_mode=pooling,
        learning_rate=LR,
        weight_decay=decay,
        weight_decay_mode=mode,
        stochastic_rounding=False,
    )
    (weights,) = table.split_embedding_weights()
    weights.data.copy_(start())
    gradient = torch.randn(len(IDS) if pooling == PoolingMode.NONE else len(OFFSETS) - 1, DIM)
    for _ in range(2):
        table(IDS, OFFSETS).backward(gradient)
    return weights.detach().clone(), gradient


def start() -> Tensor:
    return torch.linspace(-1, 1, ROWS * DIM).view(ROWS, DIM)


def reference(mode: WeightDecayMode, gradient: Tensor) -> Tensor:
    """Two steps of row-wise Adagrad on the rows that are touched, in plain PyTorch."""
    weights, sums, touched = start(), torch.zeros(ROWS), IDS.unique()
    for _ in range(2):
        of_rows = torch.zeros(ROWS, DIM).index_add(0, IDS, gradient)
        if mode == WeightDecayMode.L2:
            of_rows[touched] += DECAY * weights[touched]
        else:
            weights[touched] *= 1 - LR * DECAY
        sums[touched] += of_rows[touched].square().mean(1)
        weights[touched] -= LR * of_rows[touched] / (sums[touched].sqrt().unsqueeze(1) + 1e-8)
    return weights


@pytest.mark.parametrize(("kind", "mode", "pooling"), product(KERNELS, MODES, (PoolingMode.SUM, PoolingMode.MEAN)))
def test_kernels_on_cpu_ignore_weight_decay_in_pooled_tables(
    kind: str, mode: WeightDecayMode, pooling: PoolingMode
) -> None:
    """If this fails, fbgemm has learned it, and the experiment may offer it."""
    without, _ = table_after(kind, WeightDecayMode.NONE, 0.0, pooling)
    assert torch.equal(table_after(kind, mode, DECAY, pooling)[0], without)


@pytest.mark.parametrize("mode", MODES)
def test_only_row_wise_adagrad_decays_and_only_without_pooling(mode: WeightDecayMode) -> None:
    """So a table of sequences would decay and all other tables would not, which no experiment can mean."""
    found, gradient = table_after("rowwise_adagrad", mode, DECAY, PoolingMode.NONE)
    torch.testing.assert_close(found, reference(mode, gradient))
    for kind in ("adagrad", "sgd"):
        without, _ = table_after(kind, WeightDecayMode.NONE, 0.0, PoolingMode.NONE)
        assert torch.equal(table_after(kind, mode, DECAY, PoolingMode.NONE)[0], without)


@pytest.mark.parametrize("kind", SPARSE_OPTIMIZERS)
def test_weight_decay_that_the_kernels_ignore_is_refused(kind: str) -> None:
    check_weight_decay(SparseOptimizerConfig(kind=kind))
    config = SparseOptimizerConfig(kind=kind, weight_decay=0.3)
    if SPARSE_OPTIMIZERS[kind].has_weight_decay:
        check_weight_decay(config)
        return
    with pytest.raises(UserError, match=f"weight_decay is 0.3, but the kernels of '{kind}' do not .* Set it to 0"):
        check_weight_decay(config)


def with_decay(sparse: float = 0.0, dense: float = 0.0) -> dict[str, dict[str, dict[str, float]]]:
    return {"training": {"sparse_optimizer": {"weight_decay": sparse}, "dense_optimizer": {"weight_decay": dense}}}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """A run without weight decay: 24 steps, of which the 12th has a checkpoint."""
    experiment = new_run(tmp_path_factory.mktemp("plain"))
    with one_worker() as worker:
        run_on(worker, experiment)
    return experiment


def test_an_earlier_run_with_it_is_evaluated_and_continues_with_zero(
    plain: Experiment, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Earlier versions accepted the key, without an effect: the same bits as without it."""
    earlier = new_run(tmp_path / "earlier", **with_decay(sparse=0.5))
    with one_worker() as worker:
        run_on(worker, earlier)
        assert evaluate_on_worker(worker, earlier, LATEST, "test") is not None
    assert_identical(tensors(plain, 24, tmp_path), tensors(earlier, 24, tmp_path))
    with pytest.raises(UserError, match="Set it to 0, which continues an earlier run with the same numbers"):
        train(earlier, Launcher("local", None, lambda: None), AUTO)
    advised = continued(earlier, tmp_path / "advised", 12, **with_decay(sparse=0.0))
    with one_worker() as worker, caplog.at_level(logging.INFO):
        run_on(worker, advised)
    assert "exactly." in caplog.text
    assert_identical(tensors(plain, 24, tmp_path), tensors(advised, 24, tmp_path))


def test_a_new_pipeline_or_comparison_is_refused_before_its_table_is_made(tmp_path: Path) -> None:
    experiment = synthetic.experiment(tmp_path, **with_decay(sparse=0.5))
    with pytest.raises(UserError, match="weight_decay is 0.5"):
        pipeline.run(experiment, None, None, "local", 1)
    with pytest.raises(UserError, match="weight_decay is 0.5"):
        check_same_runs([ComparedRun("mmoe", 0, experiment)])
    assert not Path(experiment.folder).exists()


@pytest.mark.parametrize(
    ("training", "text"),
    [
        (with_decay(dense=0.01)["training"], "dense_optimizer.weight_decay no longer applies to biases"),
        ({"precision": "bf16"}, "The last layers compute in fp32"),
    ],
)
def test_a_resume_of_an_earlier_run_reports_other_numbers(tmp_path: Path, training: dict[str, Any], text: str) -> None:
    changed = changes_since(1, synthetic.experiment(tmp_path, training=training))
    assert any(text in sentence for sentence in changed)
    assert not any(text in sentence for sentence in changes_since(1, synthetic.experiment(tmp_path)))


@pytest.mark.parametrize("kind", DENSE_OPTIMIZERS)
def test_spared_parameters_have_the_steps_of_a_plain_optimizer_without_weight_decay(kind: str) -> None:
    config, gradient = DenseOptimizerConfig(kind=kind, lr=0.1, weight_decay=0.3), torch.tensor([1.0, -2.0, 0.5])
    ours = {name: torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0])) for name in ("weight", "bias")}
    plain = {name: torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0])) for name in ("weight", "bias")}
    optimizers = [dense_optimizer(ours, config, None, {"bias"})]
    for name, decay in (("weight", 0.3), ("bias", 0.0)):
        optimizers.append(DENSE_CLASSES[kind]([plain[name]], lr=0.1, weight_decay=decay))  # type: ignore[call-arg, arg-type]
    for _ in range(3):
        for parameter in (*ours.values(), *plain.values()):
            parameter.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    for name in ours:
        torch.testing.assert_close(ours[name], plain[name])
    assert not torch.allclose(ours["weight"], ours["bias"])


def test_clipping_and_the_learning_rate_apply_to_spared_parameters_too() -> None:
    one, two = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    config = DenseOptimizerConfig(kind="sgd", lr=1.0, weight_decay=0.3)
    optimizer = dense_optimizer({"one": one, "two": two}, config, 1.0, {"two"})
    for group in optimizer.param_groups:
        group["lr"] *= 0.5  # as `LearningRates` does
    one.grad, two.grad = torch.tensor([3.0]), torch.tensor([4.0])
    optimizer.step()
    assert [-one.item(), -two.item()] == pytest.approx([0.3, 0.4], abs=1e-4)


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.01), (0.01, 0.0), (0.01, 0.02)])
def test_dense_weight_decay_may_change_when_a_run_resumes(
    tmp_path: Path, before: float, after: float, caplog: pytest.LogCaptureFixture
) -> None:
    first = new_run(tmp_path / "first", **with_decay(dense=before))
    with one_worker() as worker:
        run_on(worker, first)
        resumed = continued(first, tmp_path / "resumed", 12, **with_decay(dense=after))
        with caplog.at_level(logging.INFO):
            assert run_on(worker, resumed) == "finished"
    assert f"training.dense_optimizer.weight_decay: {before} -> {after}" in caplog.text
    one, two = tensors(first, 24, tmp_path), tensors(resumed, 24, tmp_path)
    assert one.keys() == two.keys() and any(not torch.equal(one[name], two[name]) for name in one)
