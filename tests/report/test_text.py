"""The evaluation as it is printed on a terminal."""

from dataclasses import replace

import numpy as np

from pipeline.config.logs import ScenarioConfig, TaskConfig
from pipeline.evaluation.evaluation import Cell, Evaluation, parse_evaluation
from pipeline.evaluation.split_metrics import Predictions, evaluate
from pipeline.metrics.registry import METRICS
from pipeline.report.text import format_evaluation

TASKS = [
    TaskConfig(name="click", column="is_click", kind="binary"),
    TaskConfig(name="watch_time", column="play_time", kind="continuous"),
]

EXPECTED = """\
click (binary): mean AUC of scenarios 0.7500 (1 undefined, left out)
              AUC  log loss  calibration   rows  positives
all        0.7500    0.4845       0.9000  4,000      2,000
tab=1      0.7500    0.4845       0.9000  4,000      2,000
tab=other       -         -            -      0          0

watch_time (continuous, on the training scale)
             RMSE     MAE   NRMSE    NMAE  Spearman    Gini  calibration   label  predicted   rows
all        0.5000  0.2500  0.4472  0.2500    0.9487  0.9000       0.9000  2.5000     2.2500  4,000
tab=1      0.5000  0.2500  0.4472  0.2500    0.9487  0.9000       0.9000  2.5000     2.2500  4,000
tab=other       -       -       -       -         -       -            -       -          -      0

-  undefined: no rows with a label, only one class, constant values, or values that are too large"""


def predictions(level_count: int = 1) -> Predictions:
    labels = np.array([[0, 1], [1, 2], [0, 3], [1, 4]] * 1000, np.float32)
    values = np.array([[0.1, 1], [0.4, 2], [0.5, 3], [0.8, 3]] * 1000, np.float32)
    return Predictions(labels, values, np.ones(4000, np.float32), np.zeros((4000, level_count), np.int32))


def evaluated(rows: Predictions, levels: list[ScenarioConfig]) -> Evaluation:
    return parse_evaluation(evaluate(rows, TASKS, levels))


def of_snapshot(cell: Cell) -> Cell:
    """A cell with only the metrics of the snapshot, so that new metrics do not change the test."""
    return {key: value for key, value in cell.items() if key not in METRICS or f" {METRICS[key].heading} " in EXPECTED}


def text_of_snapshot(evaluation: Evaluation) -> str:
    tasks = {
        name: replace(
            task,
            overall=of_snapshot(task.overall),
            scenarios={label: of_snapshot(cell) for label, cell in task.scenarios.items()},
        )
        for name, task in evaluation.tasks.items()
    }
    return format_evaluation(replace(evaluation, tasks=tasks))


def test_snapshot() -> None:
    tab = ScenarioConfig(name="tab", column="tab", values=[1])
    assert text_of_snapshot(evaluated(predictions(), [tab])) == EXPECTED


def test_no_footnote_where_all_is_defined() -> None:
    tab = ScenarioConfig(name="tab", column="tab", values=["a - b"], other="drop")
    text = format_evaluation(evaluated(predictions(), [tab]))
    assert "undefined" not in text and "left out" not in text and "tab=a - b" in text


def test_long_labels_are_cut_in_the_middle() -> None:
    levels = [
        ScenarioConfig(name=name * 20, column=name, values=[name * 20], other="drop") for name in ("entry", "card")
    ]
    everything = predictions(level_count=2)
    everything.groups = np.arange(4000) % 10
    text = text_of_snapshot(evaluated(everything, levels))
    assert max(map(len, text.splitlines())) == 110
    assert "entryentry" in text and "…" in text and "cardcard " in text
