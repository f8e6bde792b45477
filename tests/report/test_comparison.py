"""The comparison of models over seeds, checked with numbers computed by hand and scipy's paired t test."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from pipeline.evaluation.evaluation import Evaluation, parse_evaluation
from pipeline.report.comparison import compare, format_comparison, paired_difference

Cells = dict[str, float | None]


def evaluation(auc: Cells, rmse: Cells | None = None) -> Evaluation:
    """The part of an evaluation that a comparison reads: AUC of `click` and RMSE of `value` by cell."""
    tasks = {"click": ("binary", "auc", auc), "value": ("continuous", "rmse", auc if rmse is None else rmse)}
    return parse_evaluation(
        {
            "rows": 90,
            "tasks": {
                task: {
                    "kind": kind,
                    metric: cells.get("all"),
                    "scenarios": {cell: {metric: value} for cell, value in cells.items() if cell != "all"},
                }
                for task, (kind, metric, cells) in tasks.items()
            },
        }
    )


def runs(*values: float | None) -> dict[int, Evaluation]:
    """Evaluations of seeds 0, 1, ... with one value for both tasks and both cells."""
    return {seed: evaluation({"all": value, "tab=1": value}) for seed, value in enumerate(values)}


def cell_of(comparison: dict[str, Any], variant: str, task: str = "click", cell: str = "all") -> dict[str, Any]:
    return comparison["variants"][variant]["tasks"][task][cell]


def test_mean_std_and_difference_of_three_seeds_within_noise() -> None:
    """Differences .01, .02, .01: mean .01333, std .0057735, so ± 4.3027 * .0057735 / sqrt(3) = .01434."""
    comparison = compare({"base": runs(0.70, 0.72, 0.71), "other": runs(0.71, 0.74, 0.72)})
    cell = cell_of(comparison, "other")
    assert cell["values"] == [0.71, 0.74, 0.72]
    assert cell["mean"] == pytest.approx(2.17 / 3)
    assert cell["std"] == pytest.approx(0.01527525)
    assert cell["difference"] == pytest.approx(0.04 / 3)
    assert (cell["beyond_noise"], cell["better"], cell["metric"]) == (False, True, "auc")
    assert cell["transfer"] is None and cell["transfer_beyond_noise"] is None


def test_a_fourth_seed_takes_the_same_difference_beyond_noise() -> None:
    """Differences .01, .02, .01, .02: mean .015, std .0057735, so ± 3.1824 * .0057735 / 2 = .00919."""
    comparison = compare({"base": runs(0.70, 0.72, 0.71, 0.70), "other": runs(0.71, 0.74, 0.72, 0.72)})
    assert cell_of(comparison, "other")["beyond_noise"] is True
    baseline = cell_of(comparison, "base")
    assert baseline["difference"] is None and baseline["beyond_noise"] is None and baseline["better"] is None
    assert comparison["metric_of_task"] == {"click": "auc", "value": "rmse"}
    assert (comparison["baseline"], comparison["seeds"], comparison["rows"]) == ("base", [0, 1, 2, 3], 90)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8))
def test_beyond_noise_agrees_with_the_paired_test_of_scipy(pairs: list[tuple[float, float]]) -> None:
    one, other = (dict(enumerate(values)) for values in zip(*pairs, strict=True))
    differences = np.array(list(one.values())) - np.array(list(other.values()))
    if np.ptp(differences) < 1e-6:
        return  # scipy has no p value where all differences are the same
    p = ttest_rel(list(one.values()), list(other.values())).pvalue
    if abs(p - 0.05) > 1e-9:
        assert paired_difference(one, other) == (pytest.approx(differences.mean(), abs=1e-12), p < 0.05)


def test_lower_is_better_for_rmse() -> None:
    comparison = compare({"base": runs(1.50, 1.52), "other": runs(1.20, 1.23)}, {("value", "tab=1"): runs(1.30, 1.32)})
    cell = cell_of(comparison, "other", "value", "tab=1")
    assert cell["difference"] == pytest.approx(-0.295)
    assert cell["better"] is True
    assert cell["transfer"] == pytest.approx(0.095), "better than the reference is above zero"
    assert cell_of(comparison, "base", "value", "tab=1")["transfer"] == pytest.approx(-0.2)
    assert cell_of(comparison, "base", "value", "tab=1")["transfer_beyond_noise"] is True


def test_the_reference_is_used_for_its_own_cells_only() -> None:
    reference = {("click", "tab=1"): runs(0.80, 0.82)}
    comparison = compare({"base": runs(0.70, 0.72), "other": runs(0.90, 0.92)}, reference)
    assert cell_of(comparison, "base", cell="tab=1")["transfer"] == pytest.approx(-0.1)
    assert cell_of(comparison, "other", cell="tab=1")["transfer"] == pytest.approx(0.1)
    assert cell_of(comparison, "other", cell="all")["transfer"] is None
    assert comparison["reference"] == {
        "click": {"tab=1": {"mean": pytest.approx(0.81), "std": pytest.approx(0.01414214), "values": [0.80, 0.82]}}
    }


def test_one_seed_shows_nothing_about_noise() -> None:
    cell = cell_of(compare({"base": runs(0.70), "other": runs(0.72)}, {("click", "all"): runs(0.71)}), "other")
    assert (cell["mean"], cell["std"], cell["values"]) == (0.72, None, [0.72])
    assert cell["difference"] == pytest.approx(0.02) and cell["better"] is True
    assert cell["beyond_noise"] is None and cell["transfer_beyond_noise"] is None


def test_a_cell_undefined_with_one_seed_is_undefined_and_never_zero() -> None:
    comparison = compare({"base": runs(0.70, 0.72), "other": runs(0.72, None)}, {("click", "all"): runs(0.7, 0.7)})
    cell = cell_of(comparison, "other")
    assert cell["values"] == [0.72, None]
    names = ("mean", "std", "difference", "beyond_noise", "better", "transfer", "transfer_beyond_noise")
    assert {cell[name] for name in names} == {None}


def test_differences_are_of_the_seeds_that_both_have() -> None:
    """A comparison that was stopped: the last variant lacks the last seed."""
    other = runs(0.80, 0.83)
    comparison = compare({"base": runs(0.70, 0.72, 0.10), "other": other, "not yet": {}})
    assert cell_of(comparison, "other")["difference"] == pytest.approx(0.105)
    assert comparison["variants"]["other"]["seeds"] == [0, 1]
    assert comparison["variants"]["not yet"]["seeds"] == []
    assert cell_of(comparison, "not yet")["mean"] is None


def test_a_task_that_an_earlier_version_has_not_evaluated_is_undefined_there() -> None:
    """P(task | after) is new: the finished runs of a baseline lack it, and those of the others show it."""
    more = {seed: with_conditional(of) for seed, of in runs(0.80, 0.83).items()}
    for variants in ({"base": runs(0.70, 0.72), "new": more}, {"new": more, "base": runs(0.70, 0.72)}):
        comparison = compare(variants)
        new, base = (cell_of(comparison, name, "buy_given_click") for name in ("new", "base"))
        assert (new["mean"], new["difference"]) == (pytest.approx(0.815), None)
        assert (base["values"], base["mean"], base["difference"]) == ([None, None], None, None)
        assert comparison["metric_of_task"]["buy_given_click"] == "auc"
        text = format_comparison(comparison, ["tab=1"])
        assert "**buy_given_click**: AUC" in text and "| .8150 ±.0212 " in text


def with_conditional(of: Evaluation) -> Evaluation:
    return replace(of, tasks={**of.tasks, "buy_given_click": of.tasks["click"]})


def test_equal_values_are_neither_better_nor_worse() -> None:
    cell = cell_of(compare({"base": runs(0.70, 0.72), "other": runs(0.70, 0.72)}), "other")
    assert (cell["difference"], cell["beyond_noise"], cell["better"]) == (0.0, False, None)


EXPECTED = """\
**click**: AUC, higher is better

|                    | all            | tab=1           | tab=2 |
| ------------------ | -------------- | --------------- | ----- |
| base               | .7200 ±.0200   | .7200 ±.0200 †  | -     |
| good               | .8207 ±.0205 ▲ | .8207 ±.0205 ▲  | -     |
| bad (2 of 3 seeds) | .6005 ±.0134 ▼ | .6005 ±.0134 ▼† | -     |
| reference          | -              | .8005 ±.0205    | -     |

**value**: RMSE, lower is better

|                    | all            | tab=1          | tab=2 |
| ------------------ | -------------- | -------------- | ----- |
| base               | .7200 ±.0200   | .7200 ±.0200   | -     |
| good               | .8207 ±.0205 ▼ | .8207 ±.0205 ▼ | -     |
| bad (2 of 3 seeds) | .6005 ±.0134 ▲ | .6005 ±.0134 ▲ | -     |
| reference          | -              | -              | -     |

Mean ± standard deviation over 3 seeds (0, 1, 2). ▲ better and ▼ worse than base, beyond noise.
† negative transfer: worse, beyond noise, than the reference, a model for that scenario and that task alone.
Beyond noise: paired by seed, the two-sided 95% t interval of the mean difference excludes 0.
This is only the noise of training: the test rows are the same for all seeds, and the rows of a small scenario may \
favour one model by chance.
Even without any real difference, 1 cell in 20 is marked: among many cells, some marks appear by chance."""


def test_the_text_of_a_comparison() -> None:
    """Differences are nearly the same with every seed, so that all but those of zero are beyond noise."""
    variants = {"base": runs(0.70, 0.72, 0.74), "good": runs(0.80, 0.821, 0.841), "bad": runs(0.591, 0.61)}
    comparison = compare(variants, {("click", "tab=1"): runs(0.78, 0.8005, 0.821)})
    assert format_comparison(comparison, ["tab=1", "tab=2"]) == EXPECTED


def test_one_seed_is_a_table_without_marks() -> None:
    text = format_comparison(compare({"base": runs(0.70), "other": runs(1.05)}), ["tab=1"])
    assert "| other | 1.0500 | 1.0500 |" in text and "| base  | .7000  | .7000  |" in text
    assert "One seed (0)" in text and "▲" not in text


def test_labels_with_a_bar_do_not_break_the_table() -> None:
    both = {0: evaluation({"all": 0.5, "tab=a|b": 0.5})}
    assert "| all   | tab=a\\|b |" in format_comparison(compare({"base": both}), ["tab=a|b"])
