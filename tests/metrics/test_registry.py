"""The list of metrics: its entries fit together, and which values are better."""

import pytest

from pipeline.errors import UserError
from pipeline.metrics.registry import (
    METRICS,
    PRIMARY,
    RowMetric,
    ScenarioMetric,
    column_metrics,
    is_better,
    metrics_of,
)


def test_entries_fit_together() -> None:
    for kind, name in PRIMARY.items():
        assert METRICS[name] in column_metrics(kind) and METRICS[name].ranks
    for metric in METRICS.values():
        if isinstance(metric, ScenarioMetric):
            source = METRICS[metric.row_metric]
            assert isinstance(source, RowMetric) and set(metric.kinds) <= set(source.kinds)
            assert not metric.on_page  # the tables of the page have a line per scenario


def test_headings_differ() -> None:
    for kind in PRIMARY:
        headings = [(metric.unit, metric.heading) for metric in metrics_of(kind)]
        assert len(set(headings)) == len(headings)


@pytest.mark.parametrize("metric", ["click.accuracy", "click.rows", "click.scenarios"])
def test_an_unknown_metric_is_an_error_with_the_valid_names(metric: str) -> None:
    with pytest.raises(UserError, match=f"There is no metric '{metric}'.* auc, .*log_loss, .*gini"):
        is_better(metric, 1.0, None)


def test_calibration_does_not_rank_models() -> None:
    with pytest.raises(UserError, match="does not rank models; use one of auc, "):
        is_better("click.calibration", 1, 1)


@pytest.mark.parametrize(
    ("metric", "new", "best", "better"),
    [
        ("click.auc", 0.7, 0.6, True),
        ("click.auc", 0.6, 0.6, False),
        ("watch_time.spearman", 0.5, 0.6, False),
        ("click.log_loss", 0.5, 0.6, True),
        ("watch_time.nmae", 0.7, 0.6, False),
        ("click.auc", 0.4, None, True),
        ("click.auc", None, 0.4, False),
        ("click.auc", None, None, False),
    ],
)
def test_is_better(metric: str, new: float | None, best: float | None, better: bool) -> None:
    assert is_better(metric, new, best) is better
