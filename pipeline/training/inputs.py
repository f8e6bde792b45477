"""From experiment and feature table to what a model and a batch are made of."""

from collections.abc import Mapping

from models.inputs import EmbeddingTable, Field, ModelInputs, TargetTask
from pipeline.config.experiment import Experiment
from pipeline.config.features import Multivalued, Numeric, Sequence
from pipeline.loading.columns import BatchColumns


def model_inputs(experiment: Experiment, table_rows: Mapping[str, int]) -> ModelInputs:
    """Tables with the rows that preprocessing found (`Manifest.table_rows`), fields, scenarios and tasks."""
    tables, fields = [], []
    for feature in experiment.features:
        if isinstance(feature, Numeric):
            if feature.dim is None:
                continue
            tables.append(EmbeddingTable(feature.name, table_rows[feature.name], feature.dim))
            fields.append(Field(feature.name, feature.name, "single"))
            continue
        if feature.dim is not None:
            tables.append(EmbeddingTable(feature.name, table_rows[feature.name], feature.dim))
        if isinstance(feature, Sequence):
            fields.append(Field(feature.name, feature.table, "sequence", max_length=feature.max_length))
        elif isinstance(feature, Multivalued):
            fields.append(Field(feature.name, feature.table, "multi", pooling=feature.pooling))
        else:
            fields.append(Field(feature.name, feature.table, "single"))
    names = [task.name for task in experiment.tasks]
    return ModelInputs(
        tables=tuple(tables),
        fields=tuple(fields),
        numerics=len(standardised(experiment)),
        scenarios=tuple(tuple(scenario.labels) for scenario in experiment.scenarios),
        tasks=tuple(
            TargetTask(
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
        ids=tuple(field.name for field in inputs.pooled_fields),
        sequences=tuple(field.name for field in inputs.jagged_fields),
        numerics=standardised(experiment),
        tasks=tuple(task.name for task in experiment.tasks),
        scenarios=tuple(scenario.name for scenario in experiment.scenarios),
        keys=keys,
    )


def standardised(experiment: Experiment) -> tuple[str, ...]:
    """Names of the numbers that enter as they are."""
    return tuple(f.name for f in experiment.features if isinstance(f, Numeric) and f.dim is None)
