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

from models.inputs import Embedded, Field, ModelInputs
from models.layers.pooling import averaged


class SharedEmbedding(nn.Module):
    """Looks up every embedded feature of a batch.

    Tables that are only pooled live in an EmbeddingBagCollection. Tables that a sequence reads live in an
    EmbeddingCollection, and the pooled features that share them are pooled from it. Only the two collections hold
    parameters; sharding replaces them and nothing else.
    """

    def __init__(self, inputs: ModelInputs, device: torch.device) -> None:
        super().__init__()
        self.pooled = _pooled_collection(inputs, device) if inputs.pooled_fields else None
        self.jagged = _jagged_collection(inputs, device) if inputs.jagged_fields else None
        self.assemble = Assemble(inputs)

    def forward(self, ids: KeyedJaggedTensor | None, sequences: KeyedJaggedTensor | None, numerics: Tensor) -> Embedded:
        """Takes the ids of the pooled fields, those of the jagged fields, and numerics ``(batch, numerics)``."""
        pooled = self.pooled(ids) if self.pooled is not None else None
        jagged = self.jagged(sequences) if self.jagged is not None else None
        return self.assemble(ids, pooled, jagged, numerics)


class Assemble(nn.Module):
    """Puts looked-up rows into named fields. By name: the column order of a sharded collection follows its plan."""

    def __init__(self, inputs: ModelInputs) -> None:
        super().__init__()
        self._fields = inputs.fields
        self._jagged = {f.name for f in inputs.jagged_fields}

    def forward(
        self,
        ids: KeyedJaggedTensor | None,
        pooled: KeyedTensor | None,
        jagged: dict[str, JaggedTensor] | None,
        numerics: Tensor,
    ) -> Embedded:
        out = Embedded(fields={}, sequences={}, lengths={}, numerics=numerics)
        columns = pooled.to_dict() if pooled is not None else {}
        for field in self._fields:
            if field.name not in self._jagged:
                total = columns[field.name]
                if is_mean(field):
                    assert ids is not None
                    total = averaged(total, ids[field.name].lengths())
                out.fields[field.name] = total
                continue
            assert jagged is not None
            rows = jagged[field.name]
            if field.kind == "sequence":
                out.sequences[field.name] = rows.to_padded_dense(field.max_length)
                out.lengths[field.name] = rows.lengths()
            else:
                out.fields[field.name] = pool(rows, field)
        return out


def pool(rows: JaggedTensor, field: Field) -> Tensor:
    """Rows of a jagged field as one vector a sample, ``(batch, dim)``; zeros for a sample without ids."""
    if field.kind == "single":
        return rows.values()
    lengths = rows.lengths()
    total = torch.segment_reduce(rows.values(), "sum", lengths=lengths.long(), axis=0, initial=0.0)
    return averaged(total, lengths) if is_mean(field) else total


def is_mean(field: Field) -> bool:
    """Whether sums are to be divided. Collections always sum: TorchRec 1.8 does not divide a mean under grid_shard."""
    return field.kind == "multi" and field.pooling == "mean"


def _pooled_collection(inputs: ModelInputs, device: torch.device) -> EmbeddingBagCollection:
    configs = []
    for table in inputs.tables:
        users = [f for f in inputs.pooled_fields if f.table == table.name]
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
            feature_names=[f.name for f in inputs.jagged_fields if f.table == table.name],
        )
        for table in inputs.tables
        if table.name in inputs.jagged_tables
    ]
    return EmbeddingCollection(tables=configs, device=device)
