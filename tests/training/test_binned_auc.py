"""AUC from histograms, compared with the exact AUC."""

import numpy as np
import pytest
import torch

from pipeline.metrics import functions as metrics
from pipeline.training.binned_auc import BinnedAuc

CPU = torch.device("cpu")


def make(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    predictions = torch.rand(rows, 3, generator=generator)
    labels = (torch.rand(rows, 3, generator=generator) < predictions).float()
    return predictions, labels, torch.randint(0, 4, (rows,), generator=generator).float() / 2


def exact(predictions: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, column: int) -> float | None:
    return metrics.auc(labels[:, column].numpy(), predictions[:, column].numpy(), weights.numpy())


@pytest.mark.parametrize("bins", [1, 2, 16, 4096])
def test_the_error_is_within_its_bound(bins: int) -> None:
    predictions, labels, weights = make(3000)
    binned = BinnedAuc([0, 2], CPU, bins)
    for part in range(0, 3000, 700):
        binned.update(predictions[part : part + 700], labels[part : part + 700], weights[part : part + 700])
    negative, positive = binned.state.numpy()
    bound = (negative * positive).sum(1) / (2 * negative.sum(1) * positive.sum(1))
    for task, column in enumerate([0, 2]):
        value, expected = binned.compute()[task], exact(predictions, labels, weights, column)
        assert value is not None and expected is not None
        assert abs(value - expected) <= bound[task] + 1e-12
    if bins == 4096:
        assert bound.max() < 2e-4
    if bins == 1:
        assert binned.compute() == [0.5, 0.5]


def test_scores_on_the_edges_of_bins_give_the_exact_auc() -> None:
    predictions, labels, weights = make(500)
    predictions = (predictions * 64).floor() / 64
    predictions[:2] = torch.tensor([[0.0] * 3, [1.0] * 3])  # both ends have a bin
    predictions[predictions == 63 / 64] = 1.0  # 1 shares the last bin
    binned = BinnedAuc([0, 1, 2], CPU, bins=64)
    binned.update(predictions, labels, weights)
    expected = [exact(predictions, labels, weights, column) for column in range(3)]
    assert binned.compute() == pytest.approx(expected, abs=1e-12)


def test_states_of_workers_are_merged_by_a_sum() -> None:
    predictions, labels, weights = make(1000)
    whole, *workers = (BinnedAuc([0, 1], CPU) for _ in range(4))
    whole.update(predictions, labels, weights)
    for rank, worker in enumerate(workers):
        worker.update(predictions[rank::3], labels[rank::3], weights[rank::3])
    merged = sum(worker.state for worker in workers)
    assert torch.equal(merged, whole.state)
    assert whole.state.shape == (2, 2, 4096)
    np.testing.assert_allclose(whole.state.sum((0, 2)), weights.sum().expand(2))


def test_auc_is_undefined_until_both_classes_are_seen_and_after_a_reset() -> None:
    predictions, labels, weights = make(100)
    labels[:, 1] = 1
    binned = BinnedAuc([0, 1], CPU)
    assert binned.compute() == [None, None]
    binned.update(predictions, labels, weights)
    first, second = binned.compute()
    assert first is not None and second is None
    binned.reset()
    assert binned.compute() == [None, None]


def test_predictions_may_be_of_half_precision_and_need_gradients() -> None:
    predictions, labels, weights = make(200)
    binned = BinnedAuc([0], CPU)
    binned.update(predictions.bfloat16().requires_grad_(), labels, weights)
    assert not binned.state.requires_grad
    assert binned.compute() == pytest.approx([exact(predictions, labels, weights, 0)], abs=0.01)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_update_does_not_wait_for_the_device() -> None:
    device = torch.device("cuda")
    batch = make(1000)
    on_device = [tensor.to(device) for tensor in batch]
    binned, expected = BinnedAuc([0, 2], device), BinnedAuc([0, 2], CPU)
    torch.cuda.set_sync_debug_mode("error")
    try:
        binned.update(*on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected.update(*batch)
    assert torch.equal(binned.state.cpu(), expected.state)
