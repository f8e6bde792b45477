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
from models.layers.pooling import divide_by_length


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
        return self.assemble(ids, pooled, jagged, numerics)


class Assemble(nn.Module):
    """Assigns looked-up rows to features, by name: the column order of a sharded collection depends on its plan."""

    def __init__(self, inputs: ModelInputs) -> None:
        super().__init__()
        self._features = inputs.features
        self._jagged = {f.name for f in inputs.jagged_features}

    def forward(
        self,
        ids: KeyedJaggedTensor | None,
        pooled: KeyedTensor | None,
        jagged: dict[str, JaggedTensor] | None,
        numerics: Tensor,
    ) -> Embedded:
        out = Embedded(features={}, sequences={}, lengths={}, numerics=numerics)
        columns = pooled.to_dict() if pooled is not None else {}
        for feature in self._features:
            if feature.name not in self._jagged:
                total = columns[feature.name]
                if is_mean(feature):
                    assert ids is not None
                    total = divide_by_length(total, ids[feature.name].lengths())
                out.features[feature.name] = total
                continue
            assert jagged is not None
            rows = jagged[feature.name]
            if feature.kind == "sequence":
                out.sequences[feature.name] = rows.to_padded_dense(feature.max_length)
                out.lengths[feature.name] = rows.lengths()
            else:
                out.features[feature.name] = pool(rows, feature)
        return out


def pool(rows: JaggedTensor, feature: Feature) -> Tensor:
    """Pools the rows of a jagged feature to one vector per sample, ``(batch, dim)``; zeros for a sample without ids."""
    if feature.kind == "categorical":
        return rows.values()
    lengths = rows.lengths()
    total = torch.segment_reduce(rows.values(), "sum", lengths=lengths.long(), axis=0, initial=0.0)
    return divide_by_length(total, lengths) if is_mean(feature) else total


def is_mean(feature: Feature) -> bool:
    """Whether the sum must be divided by the number of ids.

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
    return EmbeddingBagCollection(tables=configs, device=device)


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
