"""The one embedding layer that all scenarios and tasks share."""

import torch
from torch import Tensor, nn
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    JaggedTensor,
    KeyedJaggedTensor,
    KeyedTensor,
    PoolingType,
)

from models.inputs import Embedded, Feature, ModelInputs
from models.layers.pooling import divide_by_length, divide_by_weight


class SharedEmbedding(nn.Module):
    """Looks up every embedded feature of a batch.

    Tables that only pooled features use are in an EmbeddingBagCollection. Tables that a sequence uses are in an
    EmbeddingCollection; pooled features that share such a table are pooled from its rows. Only the two collections have
    parameters, and sharding replaces only these two.
    """

    def __init__(self, inputs: ModelInputs, device: torch.device) -> None:
        super().__init__()
        self.pooled = _pooled_collection(inputs, device) if inputs.pooled_features else None
        self.jagged = _jagged_collection(inputs, device) if inputs.jagged_features else None
        self.assemble = Assemble(inputs)

    def forward(self, ids: KeyedJaggedTensor | None, sequences: KeyedJaggedTensor | None, numerics: Tensor) -> Embedded:
        """Takes the ids of the pooled features, the ids of the jagged features, and numerics ``(batch, numerics)``."""
        pooled = self.pooled(ids) if self.pooled is not None else None
        jagged = self.jagged(sequences) if self.jagged is not None else None
        return self.assemble(ids, sequences, pooled, jagged, numerics)


class Assemble(nn.Module):
    """Assigns looked-up rows to features, by name: the column order of a sharded collection depends on its plan."""

    def __init__(self, inputs: ModelInputs) -> None:
        super().__init__()
        self._features = inputs.features
        self._jagged = {f.name for f in inputs.jagged_features}

    def forward(
        self,
        ids: KeyedJaggedTensor | None,
        sequences: KeyedJaggedTensor | None,
        pooled: KeyedTensor | None,
        jagged: dict[str, JaggedTensor] | None,
        numerics: Tensor,
    ) -> Embedded:
        out = Embedded(features={}, sequences={}, lengths={}, numerics=numerics)
        columns = pooled.to_dict() if pooled is not None else {}
        for feature in self._features:
            if feature.name not in self._jagged:
                total = columns[feature.name]
                assert ids is not None
                out.features[feature.name] = averaged(total, ids[feature.name], feature) if is_mean(feature) else total
                continue
            assert jagged is not None and sequences is not None
            rows = jagged[feature.name]
            if feature.kind == "sequence":
                out.sequences[feature.name] = rows.to_padded_dense(feature.max_length)
                out.lengths[feature.name] = rows.lengths()
            else:
                out.features[feature.name] = pool(rows, sequences[feature.name], feature)
        return out


def pool(rows: JaggedTensor, ids: JaggedTensor, feature: Feature) -> Tensor:
    """Pools the rows of a jagged feature to one vector per sample, ``(batch, dim)``; zeros for a sample without ids.

    Args:
        rows: of the ids, in their order.
        ids: with their weights, if the feature has any.
    """
    if feature.kind == "categorical":
        return rows.values()
    values = rows.values() * ids.weights().unsqueeze(1) if feature.is_weighted else rows.values()
    total = torch.segment_reduce(values, "sum", lengths=rows.lengths().long(), axis=0, initial=0.0)
    return averaged(total, ids, feature) if is_mean(feature) else total


def averaged(total: Tensor, ids: JaggedTensor, feature: Feature) -> Tensor:
    """The mean of the rows of each sample from their sum: each row counts by its weight, if ids have weights."""
    if feature.is_weighted:
        return divide_by_weight(total, ids.weights(), ids.lengths())
    return divide_by_length(total, ids.lengths())


def is_mean(feature: Feature) -> bool:
    """Whether the sum must be divided by the number of ids, or by the sum of their weights.

    Collections always sum, because TorchRec 1.8 does not divide a mean under grid_shard.
    """
    return feature.kind == "multivalued" and feature.pooling == "mean"


def _pooled_collection(inputs: ModelInputs, device: torch.device) -> EmbeddingBagCollection:
    configs = []
    for table in inputs.tables:
        users = [f for f in inputs.pooled_features if f.table == table.name]
        if users:
            configs.append(
                EmbeddingBagConfig(
                    name=table.name,
                    num_embeddings=table.rows,
                    embedding_dim=table.dim,
                    feature_names=[f.name for f in users],
                    pooling=PoolingType.SUM,
                )
            )
    # Ids of a collection have weights if ids of any of its features do; the others have the weight 1.
    is_weighted = any(feature.is_weighted for feature in inputs.pooled_features)
    return EmbeddingBagCollection(tables=configs, is_weighted=is_weighted, device=device)


def _jagged_collection(inputs: ModelInputs, device: torch.device) -> EmbeddingCollection:
    configs = [
        EmbeddingConfig(
            name=table.name,
            num_embeddings=table.rows,
            embedding_dim=table.dim,
            feature_names=[f.name for f in inputs.jagged_features if f.table == table.name],
        )
        for table in inputs.tables
        if table.name in inputs.jagged_tables
    ]
    return EmbeddingCollection(tables=configs, device=device)
