"""One experiment: everything that defines a run, checked as a whole."""

from collections.abc import Iterable

from pydantic import model_validator

from models.config import ModelConfig, TargetBottom
from models.names import is_taken
from pipeline import run_folder, storage
from pipeline.config.cluster import ClusterConfig
from pipeline.config.conditional_tasks import conditional_tasks, with_conditional_tasks
from pipeline.config.lanes import batch_mistake
from pipeline.config.logs import TaskConfig
from pipeline.config.table_experiment import TableExperiment
from pipeline.config.training import CheckpointConfig, EvaluationConfig, TrainingConfig
from pipeline.metrics.registry import TRAINING_SCALE, GroupMetric, metrics_of
from pipeline.section import nearest


class Experiment(TableExperiment):
    """The resolved experiment file. The references between its sections have been checked."""

    model: ModelConfig
    training: TrainingConfig = TrainingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: ClusterConfig = ClusterConfig()

    @property
    def file(self) -> str:
        """Path or URI of the resolved experiment in the run's folder."""
        return storage.join(self.folder, run_folder.EXPERIMENT_FILE)

    @property
    def checkpoint_folder(self) -> str:
        """Folder or URI of the run's checkpoints."""
        return storage.join(self.folder, run_folder.CHECKPOINTS_FOLDER)

    @property
    def table_experiment(self) -> TableExperiment:
        """The part that determines the feature table."""
        return TableExperiment(
            name=self.name,
            output=self.output,
            logs=self.logs,
            table=self.table,
            features=self.features,
            scenarios=self.scenarios,
            tasks=self.tasks,
        )

    @model_validator(mode="after")
    def _check_references(self) -> "Experiment":
        check_unique("features", (f.name for f in self.features))
        check_names(self)
        check_unique("tasks", (t.name for t in self.tasks))
        check_unique("scenarios", (s.name for s in self.scenarios))
        check_feature_references(self)
        check_task_order(self)
        check_conditional_names(self)
        check_only(self)
        check_weights(self)
        check_labels_are_not_inputs(self)
        check_target_references(self)
        check_lanes(self)
        check_metric(self)
        check_bottom(self)
        check_objective(self)
        group = self.evaluation.group
        if group is not None and group not in self.logs.keys:
            raise ValueError(f"evaluation.group: {group!r} is not one of logs.keys {self.logs.keys}: add it there")
        return self


def check_unique(section: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{section}: duplicate name {name!r}")
        seen.add(name)


def check_names(experiment: Experiment) -> None:
    """Tables, attention layers and towers are attributes of modules, and PyTorch reserves some attribute names."""
    named = {f"features.{i}.name": (feature.name, "of_item") for i, feature in enumerate(experiment.features)}
    named |= {f"tasks.{i}.name": (task.name, "task") for i, task in enumerate(experiment.tasks)}
    for path, (name, ending) in named.items():
        if is_taken(name):
            raise ValueError(f"{path}: PyTorch reserves the name {name!r}: use another, such as '{name}_{ending}'")


def check_feature_references(experiment: Experiment) -> None:
    features = {feature.name: feature for feature in experiment.features}
    for i, feature in enumerate(experiment.features):
        feature.check_references(f"features.{i}", features)


def check_task_order(experiment: Experiment) -> None:
    earlier: dict[str, TaskConfig] = {}
    for i, task in enumerate(experiment.tasks):
        if task.after is not None and task.after not in earlier:
            raise ValueError(
                f"tasks.{i}.after: {task.after!r} is not a task above {task.name!r}; " + nearest(task.after, earlier)
            )
        if task.after is not None and earlier[task.after].kind != "binary":
            raise ValueError(f"tasks.{i}.after: {task.after!r} is continuous; a task can only follow a binary task")
        earlier[task.name] = task


def check_conditional_names(experiment: Experiment) -> None:
    """P(task | after) has a name like a task, in metrics and prediction files."""
    names = [task.name for task in experiment.tasks]
    for conditional in conditional_tasks(experiment.tasks):
        name = conditional.config.name
        if name in names:
            raise ValueError(
                f"tasks.{conditional.task}: the name {name!r} is needed for the probability of "
                f"{names[conditional.task]!r} after {names[conditional.after]!r}, and another task has it: rename one"
            )
        names.append(name)


def check_only(experiment: Experiment) -> None:
    levels = {scenario.name: scenario for scenario in experiment.scenarios}
    for i, task in enumerate(experiment.tasks):
        for level, values in task.only.items():
            if level not in levels:
                raise ValueError(f"tasks.{i}.only: {level!r} is not a level of the scenarios; {nearest(level, levels)}")
            known = {label.removeprefix(f"{level}="): label for label in levels[level].labels}
            for value in values:
                if levels[level].label_of(value) not in levels[level].labels:
                    raise ValueError(
                        f"tasks.{i}.only.{level}: {value!r} is not a value of this level; {nearest(str(value), known)}"
                    )


def check_weights(experiment: Experiment) -> None:
    logs, kinds = experiment.logs, {task.name: task.kind for task in experiment.tasks}
    if logs.negatives is not None:
        name = logs.negatives.task
        if name not in kinds:
            raise ValueError(f"logs.negatives.task: no task is called {name!r}; {nearest(name, kinds)}")
        if kinds[name] != "binary":
            raise ValueError(f"logs.negatives.task: {name!r} is continuous, and only a binary task has negatives")
    for i, task in enumerate(experiment.tasks):
        if task.sample_weight is not None and task.sample_weight == logs.weight:
            raise ValueError(
                f"tasks.{i}.sample_weight: {logs.weight!r} is already logs.weight, and the two are multiplied: remove "
                "one of them"
            )


def check_labels_are_not_inputs(experiment: Experiment) -> None:
    """A label that is also a feature would let the model read the answer."""
    labels = {task.column: task.name for task in experiment.tasks}
    for i, feature in enumerate(experiment.features):
        for column in feature.columns:
            if column in labels:
                raise ValueError(
                    f"features.{i}.column: {column!r} is the label of task {labels[column]!r} "
                    "and cannot be an input: remove the feature or the task"
                )


def check_target_references(experiment: Experiment) -> None:
    """A prediction is converted with this column, which must be known before any label is."""
    labels = {task.column: task.name for task in experiment.tasks}
    for i, task in enumerate(experiment.tasks):
        if task.reference in labels:
            raise ValueError(
                f"tasks.{i}.{task.reference_key}: {task.reference!r} is the label of task {labels[task.reference]!r}, "
                "which is not known when a row is predicted: use a column that is"
            )


def check_lanes(experiment: Experiment) -> None:
    for path, size in (
        ("training.global_batch_size", experiment.training.global_batch_size),
        ("evaluation.batch_size", experiment.evaluation.batch_size),
    ):
        mistake = batch_mistake(size, experiment.table.lanes)
        if mistake is not None:
            raise ValueError(f"{path}: {mistake} or change table.lanes")


def check_metric(experiment: Experiment) -> None:
    stopping = experiment.training.early_stopping
    if stopping is None:
        return
    if "valid" not in experiment.logs.splits:
        raise ValueError("training.early_stopping needs a `valid` split: add one to logs.splits")
    name, metric = stopping.metric.split(".")
    tasks = {task.name: task for task in with_conditional_tasks(experiment.tasks)}
    if name not in tasks:
        raise ValueError(f"training.early_stopping.metric: no task is called {name!r}; {nearest(name, tasks)}")
    task = tasks[name]
    measured = [m for m in metrics_of(task.kind) if m.unit == TRAINING_SCALE or task.is_rescaled]
    ranking = {m.name: isinstance(m, GroupMetric) for m in measured if m.ranks}
    known = [m for m, needs_group in ranking.items() if experiment.evaluation.group or not needs_group]
    if metric not in known:
        raise ValueError(
            f"training.early_stopping.metric: {metric!r} cannot be used for early stopping of the {task.kind} task "
            f"{name!r}; use one of {', '.join(known)}" + (", or set evaluation.group" if ranking.get(metric) else "")
        )


def check_bottom(experiment: Experiment) -> None:
    bottom = experiment.model.bottom
    if not isinstance(bottom, TargetBottom):
        return
    targets = {feature.name: feature for feature in experiment.features if feature.is_single_id}
    if bottom.target not in targets:
        raise ValueError(
            f"model.bottom.target: no categorical feature is called {bottom.target!r}; "
            + nearest(bottom.target, targets)
        )
    widths = {feature.name: feature.table_width for feature in experiment.features}
    dim = widths[targets[bottom.target].encoder_name]
    read = [feature.model_feature for feature in experiment.features]
    if not any(f is not None and f.kind == "sequence" and widths[f.table] == dim for f in read):
        raise ValueError(
            f"model.bottom: this bottom reads behaviours: add a feature of kind `sequence` whose table has the width "
            f"of {bottom.target!r} ({dim}), such as one that shares its table"
        )
    if dim is not None:
        bottom.check_width(dim)


def check_objective(experiment: Experiment) -> None:
    objective, tasks = experiment.model.objective, {task.name: task for task in experiment.tasks}
    if objective.weighting == "uncertainty":
        for name, task in tasks.items():
            if task.loss_facts.can_be_negative:
                raise ValueError(
                    f"model.objective.weighting: the loss `{task.loss}` of {name!r} can fall below zero, where "
                    "`uncertainty` would raise its weight without limit: use `fixed`"
                )
    trunk = experiment.model.trunk
    if trunk.needs_task_order and all(task.after is None for task in experiment.tasks):
        raise ValueError(
            f"model.trunk: `{trunk.kind}` chains tasks along `after`, and no task sets it: say which task comes after "
            "which"
        )
    rule = experiment.model.core_rule
    if rule is not None:
        core = rule.core or experiment.tasks[-1].name
        if core not in tasks:
            raise ValueError(f"model.objective.gradients.core: no task is called {core!r}; {nearest(core, tasks)}")
        if tasks[core].weight == 0:
            raise ValueError(
                f"model.objective.gradients: the core task {core!r} has the weight 0, so it has no gradient to follow: "
                "set `core` to another task, or use `gradients: {kind: sum}`"
            )
