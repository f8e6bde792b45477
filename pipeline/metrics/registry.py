"""All metrics in one list: what computes each, which values are better, and where it is shown.

The experiment's checks, the evaluation, early stopping, the log lines of training, the report and comparisons all take
their metrics from `METRICS`. Needs neither torch nor any stage of the pipeline.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.inputs import TaskKind
from pipeline.errors import UserError
from pipeline.metrics import functions
from pipeline.metrics.functions import Array

ALL_ROWS = "all"
"""The label of all rows together, beside the labels of scenarios."""

Unit = Literal["training scale", "log's unit"]
TRAINING_SCALE: Unit = "training scale"
LOG_UNIT: Unit = "log's unit"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """The properties of every metric. The classes below differ in what they are computed from."""

    name: str
    """Its key in an evaluation, and in `training.early_stopping.metric`."""
    heading: str
    """The heading of its column in a table."""
    kinds: tuple[TaskKind, ...]
    """The kinds of task that have it."""
    better: Literal["higher", "lower", "one"]
    """Which values are better. A metric whose best value is 1 does not rank models."""
    unit: Unit = TRAINING_SCALE
    """For continuous tasks: whether labels and predictions are converted to the unit of the log's column before it is
    computed. Tasks whose labels are trained in the log's unit have no separate metrics in it."""
    in_log_lines: bool = False
    """Whether training prints it in the line for a validation."""
    on_page: bool = False
    """Whether the tables of the report show it; those in the terminal show all metrics."""

    @property
    def ranks(self) -> bool:
        """Whether early stopping can use it."""
        return self.better != "one"


@dataclass(frozen=True, kw_only=True)
class RowMetric(Metric):
    """Computed from the labels, predictions and weights of rows."""

    function: Callable[[Array, Array, Array], float | None]


@dataclass(frozen=True, kw_only=True)
class GroupMetric(Metric):
    """Computed within groups of rows, where the experiment has an `evaluation.group`."""

    function: Callable[[Array, Array, Array, NDArray[np.integer]], tuple[float | None, int, int]]
    """From labels, predictions, weights and groups to the value, the number of groups used and the number skipped."""
    counts: tuple[str, str]
    """The keys of these two numbers."""


@dataclass(frozen=True, kw_only=True)
class ScenarioMetric(Metric):
    """Computed from a row metric of every scenario. A task has it for all rows together, but not per scenario."""

    function: Callable[[list[float]], float]
    """From the defined values of the scenarios, of which there is at least one, to the value."""
    row_metric: str
    """Name of the row metric."""
    undefined_count: str
    """The key of the number of scenarios that have no value."""


# In the order of the columns of tables.
_ALL: tuple[Metric, ...] = (
    RowMetric(
        name="auc",
        heading="AUC",
        kinds=("binary",),
        better="higher",
        function=functions.auc,
        in_log_lines=True,
        on_page=True,
    ),
    GroupMetric(
        name="grouped_auc",
        heading="grouped AUC",
        kinds=("binary",),
        better="higher",
        function=functions.grouped_auc,
        counts=("groups", "groups_skipped"),
        on_page=True,
    ),
    RowMetric(
        name="log_loss",
        heading="log loss",
        kinds=("binary",),
        better="lower",
        function=functions.log_loss,
        in_log_lines=True,
        on_page=True,
    ),
    ScenarioMetric(
        name="macro_auc",
        heading="mean AUC of scenarios",
        kinds=("binary",),
        better="higher",
        function=functions.unweighted_mean,
        row_metric="auc",
        undefined_count="scenarios_undefined",
    ),
    RowMetric(
        name="rmse",
        heading="RMSE",
        kinds=("continuous",),
        better="lower",
        function=functions.rmse,
        in_log_lines=True,
        on_page=True,
    ),
    RowMetric(name="mae", heading="MAE", kinds=("continuous",), better="lower", function=functions.mae, on_page=True),
    RowMetric(name="nrmse", heading="NRMSE", kinds=("continuous",), better="lower", function=functions.nrmse),
    RowMetric(name="nmae", heading="NMAE", kinds=("continuous",), better="lower", function=functions.nmae),
    RowMetric(
        name="spearman",
        heading="Spearman",
        kinds=("continuous",),
        better="higher",
        function=functions.spearman,
        on_page=True,
    ),
    RowMetric(
        name="gini",
        heading="Gini",
        kinds=("continuous",),
        better="higher",
        function=functions.normalised_gini,
        on_page=True,
    ),
    RowMetric(
        name="calibration",
        heading="calibration",
        kinds=("binary", "continuous"),
        better="one",
        function=functions.calibration,
        on_page=True,
    ),
    RowMetric(
        name="rmse_log_unit",
        heading="RMSE",
        kinds=("continuous",),
        better="lower",
        function=functions.rmse,
        unit=LOG_UNIT,
        on_page=True,
    ),
    RowMetric(
        name="mae_log_unit",
        heading="MAE",
        kinds=("continuous",),
        better="lower",
        function=functions.mae,
        unit=LOG_UNIT,
        on_page=True,
    ),
    RowMetric(
        name="calibration_log_unit",
        heading="calibration",
        kinds=("continuous",),
        better="one",
        function=functions.calibration,
        unit=LOG_UNIT,
        on_page=True,
    ),
)

METRICS = {metric.name: metric for metric in _ALL}

PRIMARY: dict[TaskKind, str] = {"binary": "auc", "continuous": "rmse"}
"""The metric that models are compared by, per kind of task."""


def metrics_of(kind: TaskKind) -> list[Metric]:
    """The metrics of a kind of task, in the order of the columns of tables."""
    return [metric for metric in METRICS.values() if kind in metric.kinds]


def column_metrics(kind: TaskKind, unit: Unit = TRAINING_SCALE) -> list[Metric]:
    """Those in one unit, without those over scenarios: the metrics of all rows together and of each single scenario."""
    return [m for m in metrics_of(kind) if m.unit == unit and not isinstance(m, ScenarioMetric)]


def ranking_metric(metric: str) -> Metric:
    """The metric of a name such as ``click.auc``.

    Raises:
        UserError: there is no such metric, or it does not rank models.
    """
    found = METRICS.get(metric.rpartition(".")[2])
    known = ", ".join(name for name, entry in METRICS.items() if entry.ranks)
    if found is None:
        raise UserError(f"There is no metric {metric!r}; use TASK.METRIC with one of {known}.")
    if not found.ranks:
        raise UserError(f"{metric!r} does not rank models; use one of {known}.")
    return found


def is_better(metric: str, new: float | None, best: float | None) -> bool:
    """Whether a new value of a metric such as ``click.auc`` beats the best so far; undefined values beat nothing.

    Raises:
        UserError: there is no such metric, or it does not rank models.
    """
    better = ranking_metric(metric).better
    if new is None or best is None:
        return new is not None
    return new > best if better == "higher" else new < best
