"""AUC from histograms, compared with the exact AUC."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.special import expit
from sklearn.metrics import roc_auc_score

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
        assert bound.max() < 5e-4
    if bins == 1:
        assert binned.compute() == [0.5, 0.5]


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(1, 40), st.sampled_from([1, 3, 64, 4096]))
def test_any_probabilities_are_within_the_bound(data: st.DataObject, rows: int, bins: int) -> None:
    """Including 0, 1, the smallest float32, and neighbours that share a bin or are at its edge."""
    any_of = st.floats(0, 1, width=32)
    scores = data.draw(arrays.arrays(np.float32, rows, elements=any_of | st.sampled_from([0, 1e-45, 1e-9, 0.5, 1])))
    labels = data.draw(arrays.arrays(np.float32, rows, elements=st.sampled_from([0, 1])))
    weights = data.draw(arrays.arrays(np.float32, rows, elements=st.sampled_from([0, 0.5, 1, 3])))
    binned = BinnedAuc([0], CPU, bins)
    binned.update(*(torch.from_numpy(values.reshape(-1, 1)) for values in (scores, labels)), torch.from_numpy(weights))
    negative, positive = binned.state.numpy()[:, 0]
    (value,) = binned.compute()
    if not negative.sum() or not positive.sum():
        assert value is None
        return
    bound = (negative * positive).sum() / (2 * negative.sum() * positive.sum())
    assert value is not None
    assert abs(value - roc_auc_score(labels, scores, sample_weight=weights)) <= bound + 1e-12


def planted(rate: float, rows: int = 1_000_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits of standard deviation 1 around that of a rate, and labels with these probabilities."""
    rng = np.random.default_rng(0)
    logits = rng.normal(np.log(rate / (1 - rate)), 1, rows)
    return logits, (rng.random(rows) < expit(logits)).astype(np.float32)


@pytest.mark.parametrize("rate", [0.5, 1e-2, 1e-3, 1e-4, 2e-5, 1 - 1e-2, 1 - 1e-4, 1 - 2e-5])
def test_events_of_any_rate(rate: float) -> None:
    """Bins of equal width on the probability give .55 for .71 at a rate of 2e-5, and .65 for .72 at 1e-4.

    The expected value is the AUC of the logits themselves: that the scores are probabilities of float32, which are
    coarse near 1, costs nothing that shows.
    """
    logits, labels = planted(rate)
    scores = torch.from_numpy(expit(logits).astype(np.float32)).unsqueeze(1)
    binned = BinnedAuc([0], CPU)
    binned.update(scores, torch.from_numpy(labels).unsqueeze(1), torch.ones(len(labels)))
    assert binned.compute() == pytest.approx([roc_auc_score(labels, logits)], abs=1e-3)


def test_one_score_per_bin_gives_the_exact_auc() -> None:
    _, labels, weights = make(500)
    bins = torch.randint(1, 62, (500, 3), generator=torch.Generator().manual_seed(1))
    middle = torch.sinh(((bins.double() + 0.5) / 32 - 1) * np.arcsinh(20.0))
    predictions = torch.sigmoid(middle).float()
    predictions[:2] = torch.tensor([[0.0] * 3, [1.0] * 3])  # in the first and the last bin
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
