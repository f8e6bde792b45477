"""From experiment and feature table to what a model and a batch are made of."""

from collections.abc import Mapping

from models.inputs import EmbeddingTable, Feature, ModelInputs, Task
from pipeline.config.experiment import Experiment
from pipeline.config.features import Multivalued, Numeric, Sequence
from pipeline.loading.columns import BatchColumns


def model_inputs(experiment: Experiment, table_rows: Mapping[str, int]) -> ModelInputs:
    """Tables with the rows that preprocessing found (`Manifest.table_rows`), features, scenarios and tasks."""
    tables, features = [], []
    for feature in experiment.features:
        if isinstance(feature, Numeric):
            if feature.dim is None:
                continue
            tables.append(EmbeddingTable(feature.name, table_rows[feature.name], feature.dim))
            features.append(Feature(feature.name, feature.name, "categorical"))
            continue
        if feature.dim is not None:
            tables.append(EmbeddingTable(feature.name, table_rows[feature.name], feature.dim))
        if isinstance(feature, Sequence):
            features.append(Feature(feature.name, feature.table, "sequence", max_length=feature.max_length))
        elif isinstance(feature, Multivalued):
            features.append(Feature(feature.name, feature.table, "multivalued", pooling=feature.pooling))
        else:
            features.append(Feature(feature.name, feature.table, "categorical"))
    names = [task.name for task in experiment.tasks]
    return ModelInputs(
        tables=tuple(tables),
        features=tuple(features),
        numerics=len(standardised(experiment)),
        scenarios=tuple(tuple(scenario.labels) for scenario in experiment.scenarios),
        tasks=tuple(
            Task(
                name=t.name,
                kind=t.kind,
                after=names.index(t.after) if t.after is not None else None,
                weight=t.weight,
                loss=t.loss,
                delta=t.delta,
                power=t.power,
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
    )


def standardised(experiment: Experiment) -> tuple[str, ...]:
    """Names of the numbers that enter as they are."""
    return tuple(f.name for f in experiment.features if isinstance(f, Numeric) and f.dim is None)
