"""Derives a model's inputs and a batch's columns from the experiment and the feature table."""

from collections.abc import Mapping

from models.inputs import ModelInputs, Task
from pipeline.config.experiment import Experiment
from pipeline.loading.batch_columns import BatchColumns


def model_inputs(experiment: Experiment, table_rows: Mapping[str, int]) -> ModelInputs:
    """Embedding tables (with the rows of `Manifest.table_rows`), features, scenarios and tasks of an experiment."""
    tables = [feature.embedding_table(table_rows) for feature in experiment.features]
    features = [feature.model_feature for feature in experiment.features]
    names = [task.name for task in experiment.tasks]
    return ModelInputs(
        tables=tuple(table for table in tables if table is not None),
        features=tuple(feature for feature in features if feature is not None),
        numerics=len(standardised(experiment)),
        scenarios=tuple(tuple(scenario.labels) for scenario in experiment.scenarios),
        tasks=tuple(
            Task(
                name=t.name,
                kind=t.kind,
                after=names.index(t.after) if t.after is not None else None,
                weight=t.weight,
                loss=t.loss_config,
            )
            for t in experiment.tasks
        ),
        levels=tuple(scenario.name for scenario in experiment.scenarios),
    )


def batch_columns(experiment: Experiment, inputs: ModelInputs, keys: tuple[str, ...] = ()) -> BatchColumns:
    """The columns of a batch, in the order that the model expects."""
    return BatchColumns(
        ids=tuple(feature.name for feature in inputs.pooled_features),
        sequences=tuple(feature.name for feature in inputs.jagged_features),
        numerics=standardised(experiment),
        tasks=tuple(task.name for task in experiment.tasks),
        scenarios=tuple(scenario.name for scenario in experiment.scenarios),
        keys=keys,
        has_weights=experiment.has_weights,
        may_lack_labels=any(task.may_lack_labels for task in experiment.tasks),
        weighted=frozenset(feature.name for feature in inputs.features if feature.is_weighted),
    )


def standardised(experiment: Experiment) -> tuple[str, ...]:
    """Names of the numeric features that enter the model as numbers, without an embedding."""
    return tuple(f.name for f in experiment.features if f.model_feature is None)
