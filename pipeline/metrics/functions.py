"""Weighted metrics of one task on one set of rows, exact and vectorised: O(rows log rows), sums in float64.

Functions of rows take arrays ``(rows,)`` and return None where their metric is undefined: never 0, 0.5 or NaN.
A row of weight k counts as k copies of the row; a row of weight 0 is ignored.

Products are summed with ``np.sum``, never with ``np.dot``: BLAS may add in another order on another machine or with
another number of threads, and the same rows in the same order should give the same bits.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating] | NDArray[np.integer]
Float64 = NDArray[np.float64]

PROBABILITY_EPSILON = float(np.finfo(np.float32).eps)
"""Probabilities are float32, in which a saturated sigmoid is exactly 0 or 1: log loss keeps this distance from both."""


def auc(labels: Array, scores: Array, weights: Array) -> float | None:
    """Area under the ROC curve: the share of (positive, negative) pairs that the scores put in the right order.

    ``AUC = sum_ij w_i w_j ([s_i > s_j] + [s_i = s_j] / 2) / (P N)`` over positives i and negatives j of total weights
    P and N; a tie counts half, as in scikit-learn. None if a class has no weight. Labels are 0 or 1.
    """
    return grouped_auc(labels, scores, weights, np.zeros(len(labels), np.int8))[0]


def grouped_auc(
    labels: Array, scores: Array, weights: Array, groups: NDArray[np.integer]
) -> tuple[float | None, int, int]:
    """AUC within each group (a user, say), averaged over groups by their weight: ``sum_g W_g AUC_g / sum_g W_g``.

    Only groups with both classes have an AUC; the others are skipped. All groups are computed with one sort.

    Returns:
        The mean, None when no group has both classes; the number of groups used; the number skipped.
    """
    present = weights > 0
    labels, scores, groups = labels[present], scores[present], groups[present]
    if not len(labels):
        return None, 0, 0
    order = np.lexsort((scores, groups))
    labels, scores, groups = labels[order], scores[order], groups[order]
    row_weights = weights[present][order].astype(np.float64)

    new_group = _changes(groups)
    ties = np.flatnonzero(new_group | _changes(scores))
    first_tie = np.flatnonzero(new_group[ties])  # of each group, counted in ties
    positive = np.add.reduceat(np.where(labels > 0, row_weights, 0.0), ties)
    negative = np.add.reduceat(np.where(labels > 0, 0.0, row_weights), ties)
    positives = np.add.reduceat(positive, first_tie)
    negatives = np.add.reduceat(negative, first_tie)

    below = np.concatenate(([0.0], np.cumsum(negative)[:-1]))  # negatives that score lower, and all of earlier groups
    below -= np.repeat(below[first_tie], np.diff(first_tie, append=len(ties)))
    won = np.add.reduceat(positive * (below + negative / 2), first_tie)
    both = (positives > 0) & (negatives > 0)
    used = int(np.count_nonzero(both))
    if not used:
        return None, 0, len(both)
    positives, negatives = positives[both], negatives[both]
    aucs = np.clip(won[both] / (positives * negatives), 0.0, 1.0)  # rounding may leave [0, 1]
    return _mean(aucs, positives + negatives), used, len(both) - used


def log_loss(labels: Array, probabilities: Array, weights: Array) -> float | None:
    """``-sum w (y ln p + (1 - y) ln(1 - p)) / sum w`` in nats, p clipped to ``[eps, 1 - eps]`` of float32.

    Also defined with only one class; None without rows. scikit-learn clips float32 probabilities in the same way.
    """
    if not _any(weights):
        return None
    p = np.clip(probabilities.astype(np.float64), PROBABILITY_EPSILON, 1 - PROBABILITY_EPSILON)
    return _mean(np.where(labels > 0, -np.log(p), -np.log1p(-p)), weights)


def calibration(labels: Array, predictions: Array, weights: Array) -> float | None:
    """Predicted over observed, ``sum w yhat / sum w y``: 1 is right on average, above 1 is too high.

    For either kind of task. None if the labels sum to zero, for example without positives.
    """
    observed = float(np.sum(weights.astype(np.float64) * labels))
    return float(np.sum(weights.astype(np.float64) * predictions)) / observed if observed else None


def unweighted_mean(values: list[float]) -> float:
    """``sum x / n`` of at least one value."""
    return sum(values) / len(values)


def mean(values: Array, weights: Array) -> float | None:
    """``sum w x / sum w``; None without rows."""
    return _mean(values, weights) if _any(weights) else None


def rmse(labels: Array, predictions: Array, weights: Array) -> float | None:
    """Root mean squared error, ``sqrt(sum w (yhat - y)^2 / sum w)``; None without rows."""
    if not _any(weights):
        return None
    return float(np.sqrt(_mean((predictions.astype(np.float64) - labels) ** 2, weights)))


def mae(labels: Array, predictions: Array, weights: Array) -> float | None:
    """Mean absolute error, ``sum w |yhat - y| / sum w``; None without rows."""
    return _mean(np.abs(predictions.astype(np.float64) - labels), weights) if _any(weights) else None


def nrmse(labels: Array, predictions: Array, weights: Array) -> float | None:
    """``RMSE / std(y)``, with the standard deviation of the rows themselves (divided by sum w).

    The constant mean(y) gets 1. The HTLNet paper publishes NRMSE without its normaliser: this one is a reconstruction
    that fits the published numbers better than mean(y) does. None for constant labels.
    """
    if _constant(labels, weights):
        return None
    return _ratio(rmse(labels, predictions, weights), rmse(labels, np.array(_mean(labels, weights)), weights))


def nmae(labels: Array, predictions: Array, weights: Array) -> float | None:
    """``MAE / mean |y - mean(y)|``: the constant mean(y) gets 1.

    The normaliser is a reconstruction, as for `nrmse`. None for constant labels.
    """
    if _constant(labels, weights):
        return None
    return _ratio(mae(labels, predictions, weights), mae(labels, np.array(_mean(labels, weights)), weights))


def spearman(labels: Array, predictions: Array, weights: Array) -> float | None:
    """Spearman's rank correlation: Pearson's correlation of the ranks of labels and predictions.

    Ranks are average ranks within ties; with weights, the rank of a row is the weight below it plus half the weight
    tied with it, and the correlation is weighted. Unit weights give scipy.stats.spearmanr.
    None when the labels or the predictions are constant.
    """
    if _constant(labels, weights) or _constant(predictions, weights):
        return None
    x, y = _ranks(labels, weights), _ranks(predictions, weights)
    x -= _mean(x, weights)
    y -= _mean(y, weights)
    covariance, deviations = _mean(x * y, weights), np.sqrt(_mean(x * x, weights)) * np.sqrt(_mean(y * y, weights))
    return min(1.0, max(-1.0, float(covariance / deviations)))  # rounding may leave [-1, 1]


def normalised_gini(labels: Array, predictions: Array, weights: Array) -> float | None:
    """``Gini(y, yhat) / Gini(y, y)``: 1 for the right order of amounts, 0 for none, -1 for the reverse.

    Gini(y, s) is twice the area between the diagonal and the Lorenz curve, which adds up the rows' shares of sum(w y)
    in descending order of s. Tied rows share a straight piece of the curve, so that their
    order does not matter. The code computes ``sum w (y - mean(y)) rank(s)`` with the ranks of `spearman`: by summation
    by parts this is the area up to a factor, which cancels in the ratio. For labels 0 and 1 the result is
    ``2 AUC - 1``. None for constant labels; constant predictions get 0.
    """
    if _constant(labels, weights):
        return None
    centred = labels.astype(np.float64) - _mean(labels, weights)
    area, largest = (_mean(centred * _ranks(by, weights), weights) for by in (predictions, labels))
    return min(1.0, max(-1.0, area / largest))  # rounding may leave [-1, 1]


def _changes(values: Array) -> NDArray[np.bool_]:
    """True where a sorted array begins a run of equal values; ``(rows,)``, rows > 0."""
    return np.concatenate(([True], values[1:] != values[:-1]))


def _ranks(values: Array, weights: Array) -> Float64:
    """Weighted average rank of each row, ascending: the weight below it plus half the weight tied with it.

    Centred on the middle of all weight, so that the mean rank is 0 and constant values have ranks of exactly 0.
    """
    order = np.argsort(values, kind="stable")
    run_of_row = np.cumsum(_changes(values[order])) - 1
    tied = np.bincount(run_of_row, weights=weights[order])
    upto = np.cumsum(tied)
    ranks = np.empty(len(values))
    ranks[order] = (upto - tied / 2 - upto[-1] / 2)[run_of_row]
    return ranks


def _any(weights: Array) -> bool:
    return bool(np.any(weights > 0))


def _constant(values: Array, weights: Array) -> bool:
    """Whether the rows of positive weight share one value, or there are none.

    The values are compared, because a rounded variance is rarely 0.
    """
    values = values[weights > 0]
    return not len(values) or bool(values.min() == values.max())


def _mean(values: Array, weights: Array) -> float:
    weights = weights.astype(np.float64)
    return float(np.sum(weights * values) / np.sum(weights))


def _ratio(error: float | None, naive: float | None) -> float | None:
    return error / naive if error is not None and naive else None
